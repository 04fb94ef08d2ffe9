"""A farm on a real Slurm in real podman-hpc, as an unprivileged user: from the image to the labels and the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterConfig, Host, cluster
from cluster import missing as no_cluster
from images import podman_hpc, triton_image
from images import site as sites
from images.site import IMAGE
from waiting import until

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.models.build import build
from exatrkx_hpc.tracking.simulation.synthetic import write_events

pytestmark = pytest.mark.slurm

#: What a site's nodes have and a bare machine may not: users may open these.
OPEN_DEVICES = """\
mkdir -p {folder}
mount -t tmpfs -o mode=755 exatrkx-cluster {folder}
mknod -m 666 {folder}/fuse c 10 229
mknod -m 666 {folder}/tun c 10 200
mount --bind {folder}/fuse /dev/fuse
[ ! -e /dev/net/tun ] || mount --bind {folder}/tun /dev/net/tun
"""
#: What a user of shifter has, and takes podman-hpc for by a flag alone.
FARM = """\
site = "perlmutter"
run_root = "{shared}/runs"

[job]
account = "m1234"
partition = "gpu"
nodes = 1
time = "00:10:00"
gpus_per_node = 0

[balancer]
access = "open"

[server]
image = "docker:{image}"
device = "cpu"
modules = []
shm_size = "512m"
model_repository = "{shared}/models"
python_environment = "{shared}/environment"
drain = 1
exit_timeout = 5
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """A cluster of one node with podman-hpc, the image migrated, and a farm.toml in the user's home."""
    if reason := no_cluster() or sites.missing("podman-hpc") or triton_image.missing():
        pytest.skip(reason)
    with cluster(ClusterConfig(nodes=1)) as c:
        c.wait_idle()
        furnish(c)
        yield c


def furnish(c: Cluster) -> None:
    folder = c.base / "podman-hpc"
    folder.mkdir()
    program = podman_hpc.install(folder, own=Path("/tmp"), squash=c.shared / "squash")
    (c.base / "bin" / "podman-hpc").symlink_to(program)
    for host in (c.head, *c.nodes):
        good(host.run(["bash", "-ec", OPEN_DEVICES.format(folder="/run/open")], user="root"))
    triton_image.place(triton_image.model_environment(), c.shared / "environment")
    triton_image.place(triton_image.root_archive(), c.shared / "image.tar")
    environment = c.shared / "environment"
    build(asset("model_repos/exatrkx"), c.shared / "models", device="cpu", environment=environment, fused=False)
    write_events(c.shared / "events", events=10, tracks=30, seed=3)
    # As on a login node: the store is the head's own, what the nodes see is the migrated copy.
    change = f"ENV PATH={triton_image.PATH}"
    good(c.run(["podman-hpc", "import", "--change", change, str(c.shared / "image.tar"), IMAGE], timeout=120))
    good(c.run(["podman-hpc", "migrate", IMAGE], timeout=120))
    (c.home() / "farm.toml").write_text(FARM.format(shared=c.shared, image=IMAGE))


def good(done: Completed) -> str:
    assert done.returncode == 0, done.complaint
    return done.stdout.strip()


def processes(host: Host) -> list[str]:
    """The processes of a container on the host, and of the engine but its holder of the user's namespace."""
    listed = good(host.run(["ps", "-eo", "args="], user="root")).splitlines()
    words = ("tritonserver", "triton_python_backend_stub", "conmon", "podman ", "squashfuse", "fuse-overlayfs")
    return [line for line in listed if any(word in f"{line} " for word in words) and line != "/usr/bin/podman"]


def test_the_image_reaches_the_node_only_when_it_is_migrated(slurm):
    rows = good(slurm.nodes[0].run(["podman-hpc", "images", "--noheading"])).splitlines()
    assert [row.split()[-1] for row in rows] == ["true"], "read-only, from the shared folder"


def test_a_farm_in_podman_hpc_on_slurm_labels_events_and_leaves_nothing(slurm):
    node = slurm.nodes[0]
    job = good(slurm.run(["exatrkx-hpc", "deploy", "--engine", "podman-hpc"])).splitlines()[-1].split()[-1]
    run_dir = slurm.shared / "runs" / job
    log = run_dir / "logs" / f"{node.name}-0.log"
    try:
        words = ["exatrkx-hpc", "run-clients", "--server", f"{node.name}:8001"]
        until(lambda: ready(slurm, f"http://{node.name}:8000"), what=f"the server, see {log}", deadline=120)
        assert good(node.run(["podman-hpc", "ps", "--format", "{{.Names}}"])) == f"exatrkx-{job}-{node.name}-0"
        out = slurm.shared / "results"
        good(slurm.run([*words, "-d", str(slurm.shared / "events"), "-o", str(out), "-n", "2", "-q"], timeout=120))
        report = json.loads((out / "report.json").read_text())
        assert (report["events"], report["done"], report["failed"]) == (10, 10, [])
    finally:
        if log.exists():
            print(log.read_text()[-2000:])
        good(slurm.run(["exatrkx-hpc", "stop", job], timeout=120))
    until(lambda: not good(slurm.run(["squeue", "--noheader"])), what="the end of the job", deadline=60)
    until(lambda: not processes(node), what=f"the end of {processes(node)}")
    assert good(node.run(["podman-hpc", "ps", "--all", "--quiet"])) == ""
    assert good(node.run(["ls", "/dev/shm"])) == ""
    assert json.loads(next((run_dir / "records").glob("*.json")).read_text())["state"] == "gone"


def ready(c: Cluster, server: str) -> bool:
    ask = f"import urllib.request as u; u.urlopen('{server}/v2/health/ready', timeout=2)"
    return c.run(["python3", "-c", ask], timeout=10).returncode == 0
