"""What doctor finds and does not find; each engine and Slurm is a fake that answers as the real one does."""

from __future__ import annotations

import json
import os
import shlex
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import FAKES

from exatrkx_hpc.base.credentials import make_secret
from exatrkx_hpc.base.ports import free_port, user_port
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import BalancerSection, Farm
from exatrkx_hpc.doctor import Finding, examine
from exatrkx_hpc.doctor.secrets import secret_findings
from exatrkx_hpc.fleet.balancer import certificate
from exatrkx_hpc.fleet.balancer.balancers import balancer_of
from exatrkx_hpc.fleet.balancer.certificate import made_certificate
from exatrkx_hpc.launch.plan import make_plan
from exatrkx_hpc.launch.run_dir import FarmDir, RunDir

IMAGE = "docker.io/nvcr/tritonserver:24.10"
DOWN = "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)\n"


class Bench:
    """A run root, and programs first on PATH that are what the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()

    def put(self, *programs: Path) -> None:
        for program in programs:
            (self.bin / program.name).symlink_to(program)

    def write(self, name: str, script: str) -> None:
        """Write a program; its words go to the file `called` first."""
        path = self.bin / name
        path.write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >>{shlex.quote(str(self.folder))}/called\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def called(self) -> list[str]:
        return (self.folder / "called").read_text().splitlines()

    def farm(self, **values: object) -> Farm:
        flags = {"site": "generic", "run_root": str(self.folder / "runs"), "balancer.host": "127.0.0.1"}
        free = {"balancer.grpc_port": 0, "balancer.http_port": 0, "monitor.prometheus": False}
        named = {name.replace("__", ".", 1): value for name, value in values.items()}
        return resolve(flags={**flags, **free, **named}).farm

    def look(self, **values: object) -> list[Finding]:
        farm = self.farm(**values)
        return list(examine(farm, lambda: make_plan(farm)))

    def one(self, what: str, **values: object) -> Finding:
        found = [finding for finding in self.look(**values) if finding.what == what]
        assert len(found) == 1, found
        return found[0]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.fixture
def slurm(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Slurm's commands; what `scontrol` answers, or its complaint, can be set."""
    monkeypatch.setenv("FAKE_SLURM", str(bench.folder))
    bench.put(*(FAKES / "fake_slurm").glob("s*"), FAKES / "fake_slurm" / "reply.bash")

    def answer(*, out: str = "", err: str = "") -> None:
        for name, text in (("scontrol.out", out), ("scontrol.err", err)):
            if text:
                (bench.folder / name).write_text(text)

    return answer


def local(**values: object) -> dict[str, object]:
    return {"cluster__scheduler": "local", **values}


def says_what_to_do(finding: Finding) -> bool:
    return not finding.ok and bool(finding.found) and bool(finding.remedy)


# Slurm


def test_slurm_answers(bench, slurm):
    found = {finding.what: finding for finding in bench.look()}
    assert found["slurm"].ok
    assert found["slurm"].found == "cluster pretend, Slurm 22.05.8"
    assert found["job"].ok
    assert found["drain time"].ok


def test_a_controller_that_does_not_answer_is_said_once_and_nothing_more_is_asked(bench, slurm):
    slurm(err=DOWN)
    found = {finding.what: finding for finding in bench.look()}
    assert says_what_to_do(found["slurm"])
    assert found["slurm"].found == "no answer: Unable to contact slurm controller (connect failure)"
    assert "scontrol ping" in found["slurm"].remedy
    assert not {"job", "drain time"} & set(found)


def test_without_its_commands_slurm_is_not_asked(bench, monkeypatch):
    monkeypatch.setenv("PATH", str(bench.bin))
    found = {finding.what: finding for finding in bench.look()}
    assert all(says_what_to_do(found[name]) for name in ("sbatch", "squeue", "scancel", "sacct", "scontrol"))
    assert "slurm" not in found


@pytest.mark.parametrize(
    ("values", "ok", "part"),
    [
        ({"job__signal": "B:TERM@60", "server__drain": 5, "server__exit_timeout": 20}, True, "60 s (job.signal"),
        ({"job__signal": "B:TERM", "server__drain": 35, "server__exit_timeout": 20}, True, "has 60 s"),
        ({"job__signal": "B:TERM@60", "server__drain": 60, "server__exit_timeout": 20}, False, "needs 85 s to stop"),
        ({"job__signal": "B:USR2@30", "server__drain": 0, "server__exit_timeout": 25}, True, "has 30 s"),
        ({"job__signal": "", "server__drain": 5, "server__exit_timeout": 20}, True, "KillWait"),
        ({"job__signal": "", "server__drain": 6, "server__exit_timeout": 20}, False, "has 30 s (job.signal does"),
        ({"job__signal": "TERM@600", "server__drain": 6, "server__exit_timeout": 20}, False, "has 30 s"),
        ({"job__signal": "B:USR1@600", "server__drain": 6, "server__exit_timeout": 20}, False, "has 30 s"),
        ({"job__signal": "B:HUP@600", "server__drain": 6, "server__exit_timeout": 20}, False, "has 30 s"),
    ],
)
def test_the_time_for_a_drain_is_weighed(bench, slurm, values, ok, part):
    finding = bench.one("drain time", **values)
    assert finding.ok is ok
    assert part in finding.found
    assert "scancel 30 s (KillWait)" in finding.found or not ok
    assert ok or "set job.signal to B:TERM@" in finding.remedy


@pytest.mark.parametrize("signal", ["B:TERM@120", "B:USR2@120", "B:USR1@120", "BR:SIGUSR1@120", "B:12@120"])
def test_a_time_limit_that_the_signal_uses_up_is_found(bench, slurm, signal):
    """Each of these ends the servers before the limit, although not each lets them drain."""
    assert not bench.one("time limit", job__signal=signal, job__time="3").ok
    assert bench.one("time limit", job__signal=signal, job__time="4").ok
    assert bench.one("time limit", job__signal=signal.replace("B:", "").replace("BR:", "R:"), job__time="1").ok


# The run root and the ports


def test_a_run_root_in_the_memory_of_this_machine_is_not_shared(bench):
    finding = bench.one("run root shared", run_root="/dev/shm/exatrkx of a test")
    assert says_what_to_do(finding)
    assert "tmpfs" in finding.found


def test_a_run_root_below_tmp_is_not_shared(bench):
    finding = bench.one("run root shared", run_root="/tmp/exatrkx of a test/not there")
    assert says_what_to_do(finding)
    assert "/tmp" in finding.found


def test_a_run_root_elsewhere_may_be_shared(bench):
    assert bench.one("run root shared", run_root="/srv/runs").ok


def test_one_machine_shares_its_run_root_with_itself(bench):
    assert "run root shared" not in {finding.what for finding in bench.look(**local())}


def test_the_ports_of_the_servers_lie_below_those_of_connections(bench):
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    finding = bench.one("server ports", **local(server__base_port=low - 13, server__servers_per_node=2))
    assert (finding.ok, finding.found) == (True, f"{low - 13} to {low - 1} on each node")
    finding = bench.one("server ports", **local(server__base_port=low - 12, server__servers_per_node=2))
    assert says_what_to_do(finding)
    assert "outgoing" in finding.found


def test_a_port_of_the_endpoint_that_is_taken_is_said(bench):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = bench.one("endpoint grpc_port", **local(balancer__grpc_port=port))
    assert says_what_to_do(finding)
    assert bench.one("endpoint grpc_port", **local(balancer__grpc_port=port)).ok


def test_the_ports_of_ones_own_are_told_and_taken_ones_are_no_fault(bench):
    values = local(balancer__grpc_port="user", balancer__host="127.0.87.2")
    own = user_port("grpc", os.getuid())
    assert bench.one("endpoint grpc_port", **values).found == f"127.0.87.2:{own}"
    with socket.socket() as taken:
        taken.bind(("127.0.87.2", own))
        taken.listen()
        finding = bench.one("endpoint grpc_port", **values)
    assert (finding.ok, finding.remedy) == (True, "")
    assert finding.found == f"127.0.87.2:{own}: Address already in use; the monitor uses any free port instead"


def test_a_machine_without_prometheus_is_a_warning(bench, monkeypatch):
    monkeypatch.setenv("PATH", str(bench.bin))
    finding = bench.one("prometheus", **local(monitor__prometheus=True))
    assert finding.ok
    assert "goes without it" in finding.found
    assert "monitor.prometheus" in finding.remedy


def test_the_models_packages_that_are_not_fetched_are_a_warning(bench):
    place = bench.folder / "environment"
    values = local(server__python_environment=str(place))
    finding = bench.one("models' packages", **values)
    assert (finding.ok, finding.found) == (True, f"{place} does not exist")
    assert "exatrkx-hpc setup" in finding.remedy
    place.mkdir()
    assert bench.one("models' packages", **values).remedy == ""
    assert "models' packages" not in {one.what for one in bench.look(**local())}


def test_a_port_that_ones_own_monitor_holds_is_no_fault(bench, nginx):
    port, other = free_port("127.0.0.1"), free_port("127.0.0.1")
    run_dir = RunDir(bench.folder / "runs" / "7")
    run_dir.path.mkdir(parents=True)
    balancer = balancer_of(
        BalancerSection(host="127.0.0.1", grpc_port=port, http_port=other), run_dir.balancer("nginx")
    )
    record = {"job": "7", "grpc": f"127.0.0.1:{port}", "http": f"127.0.0.1:{other}", "prometheus": "", "metrics": {}}
    balancer.start(())
    try:
        assert says_what_to_do(bench.one("endpoint grpc_port", **local(balancer__grpc_port=port)))
        run_dir.endpoint.write_text(json.dumps(record | {"ready": 0, "monitor_pid": 1, "updated": 0}))
        finding = bench.one("endpoint grpc_port", **local(balancer__grpc_port=port))
        assert finding.ok and finding.found == f"127.0.0.1:{port}, of the monitor of job 7"
    finally:
        balancer.stop()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert says_what_to_do(bench.one("endpoint grpc_port", **local(balancer__grpc_port=port)))


def test_a_port_of_prometheus_that_is_taken_is_said(bench):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = local(monitor__prometheus=True, monitor__prometheus_port=taken.getsockname()[1])
        assert says_what_to_do(bench.one("endpoint prometheus_port", **values))


# Engines


def engine(name: str, **values: object) -> dict[str, object]:
    return local(server__engine=name, server__image=IMAGE, **values)


@pytest.mark.parametrize("name", ["shifter", "podman-hpc", "podman", "apptainer"])
def test_an_engine_that_is_not_here(bench, monkeypatch, name):
    monkeypatch.setenv("PATH", str(bench.bin))
    found = bench.look(**engine(name))
    missing = [finding for finding in found if finding.what == "engine"]
    assert missing and all(says_what_to_do(finding) for finding in missing)
    assert "image" not in {finding.what for finding in found}, "nobody can say"


@pytest.mark.parametrize("name", ["shifter", "podman-hpc", "podman", "apptainer"])
def test_what_an_engine_would_refuse_is_said_as_deploy_says_it(bench, name):
    wrong = {"shifter": {"server__mounts": ["/a:/etc/b"]}, "apptainer": {"server__shm_size": "1g"}}
    finding = bench.one("server settings", **engine(name, **wrong.get(name, {"server__shm_size": "much"})))
    assert says_what_to_do(finding)
    assert name in finding.found


@pytest.fixture
def shifter(bench, monkeypatch) -> Path:
    """A shifter, and the file with the images that the gateway has."""
    bench.put(FAKES / "shifter", FAKES / "shifterimg")
    images = bench.folder / "images"
    images.write_text("docker:nvcr/tritonserver:24.10\n")
    monkeypatch.setenv("FAKE_SHIFTERIMG", str(images))
    return images


TRITON = "docker:nvcr/tritonserver:24.10"


@pytest.mark.parametrize("image", [TRITON, TRITON.removeprefix("docker:"), TRITON.replace("docker:", "docker://")])
def test_an_image_that_shifters_gateway_has(bench, shifter, image):
    finding = bench.one("image", **engine("shifter") | {"server__image": image})
    assert (finding.ok, finding.found) == (True, f"{TRITON}, 7f1a3c9f0e5d")


def test_an_image_that_shifters_gateway_has_not(bench, shifter):
    finding = bench.one("image", **engine("shifter") | {"server__image": "docker:nvcr/tritonserver:24.1"})
    assert says_what_to_do(finding)
    assert finding.found == "the image gateway has no docker:nvcr/tritonserver:24.1"
    assert "exatrkx-hpc setup" in finding.remedy


@pytest.mark.parametrize("state", ["dead", "slow"])
def test_a_gateway_that_does_not_answer_is_not_an_image_that_is_missing(bench, shifter, monkeypatch, state):
    monkeypatch.setenv("FAKE_GATEWAY", state)
    finding = bench.one("image", **engine("shifter") | {"server__image": TRITON})
    words = {"dead": "ERROR: failed to contact the image gateway.", "slow": "err 28"}[state]
    assert finding.found == f"the image gateway does not report whether it has {TRITON}: {words}"
    assert finding.remedy == f"retry with 'shifterimg lookup {TRITON}'"


def test_a_target_that_is_not_in_shifters_image(bench, shifter):
    """shifter itself is asked: it makes what lies in its own root, and nothing deeper."""
    (bench.folder / "there").mkdir()
    file = bench.folder / "file"
    file.touch()
    targets = [str(bench.folder / "there"), "/models", "/opt/new", "/var/tmp", "/not/there"]
    mounts = [*(f"{bench.folder}:{target}" for target in targets), f"{file}:/file"]
    values = engine("shifter", server__mounts=mounts) | {"server__image": TRITON}
    found = [finding for finding in bench.look(**values) if finding.what == "in the container"]
    assert [finding.ok for finding in found] == [True, True, True, True, False, False]
    assert found[4].found.startswith(f"shifter does not mount {bench.folder} as /not/there: BIND MOUNT FAILED")
    assert "server.mounts" in found[4].remedy


def test_a_folder_that_shifter_does_not_show(bench, shifter):
    models = bench.folder / "models"
    models.mkdir()
    (bench.bin / "shifter").unlink()
    bench.write("shifter", f"""[ "${{*: -1}}" != {models} ]""")
    values = engine("shifter", server__model_repository=str(models))
    finding = bench.one("in the container", **values | {"server__image": TRITON})
    assert says_what_to_do(finding)
    assert bench.called() == [f"--image={TRITON} test -d {models}"]


def test_a_mount_of_nothing(bench):
    (bench.folder / "data").mkdir()
    mounts = [f"{bench.folder}/data:/data", f"{bench.folder}/nothing:/nothing"]
    found = [finding for finding in bench.look(**engine("podman", server__mounts=mounts)) if finding.what == "mount"]
    assert [finding.ok for finding in found] == [True, False]
    assert says_what_to_do(found[1])


@pytest.mark.parametrize(
    ("script", "ok", "part"),
    [
        ("exit 0", True, IMAGE),
        ("exit 1", False, "podman has no"),
        ("echo 'Error: cannot open the store' >&2; exit 125", False, "cannot open the store"),
    ],
)
def test_an_image_of_podman(bench, script, ok, part):
    bench.write("podman", f"[ $1 = ps ] && echo '[]' && exit 0\n{script}")
    finding = bench.one("image", **engine("podman"))
    assert finding.ok is ok
    assert part in finding.found
    assert ok or finding.remedy
    assert f"image exists {IMAGE}" in bench.called()


ROW = f"{IMAGE.rpartition(':')[0]}  24.10  1c6b2f1a9d3e  2 days ago  14.1 GB"


@pytest.mark.parametrize(
    ("script", "ok", "part"),
    [
        (f"echo '{ROW}  true'", True, IMAGE),
        (f"echo '{ROW}  false'; echo '{ROW}  true'", True, IMAGE),
        (f"echo '{ROW}  false'", False, "exists only on this machine"),
        ("true", False, "podman-hpc has no"),
        ("echo 'no such file: podman_hpc.yaml' >&2; exit 1", False, "podman_hpc.yaml"),
    ],
)
def test_an_image_of_podman_hpc_that_the_nodes_see(bench, script, ok, part):
    bench.write("podman-hpc", f"[ $1 = ps ] && echo '[]' && exit 0\n{script}")
    finding = bench.one("image", **engine("podman-hpc", cluster__scheduler="slurm"))
    assert finding.ok is ok
    assert part in finding.found
    assert ok or finding.remedy


def test_on_one_machine_no_image_is_migrated(bench):
    bench.write("podman-hpc", f"[ $1 = ps ] && echo '[]' && exit 0\necho '{ROW}  false'")
    assert bench.one("image", **engine("podman-hpc")).ok


def test_an_image_of_apptainer_is_a_file_or_is_fetched(bench):
    bench.put(FAKES / "apptainer")
    image = bench.folder / "triton.sif"
    missing = bench.one("image", **engine("apptainer") | {"server__image": str(image)})
    assert says_what_to_do(missing)
    assert f"apptainer pull {image}" in missing.remedy
    image.touch()
    assert bench.one("image", **engine("apptainer") | {"server__image": str(image)}).ok
    fetched = bench.one("image", **engine("apptainer") | {"server__image": f"docker://{IMAGE}"})
    assert fetched.ok
    assert "fetches" in fetched.found


def test_without_a_container_there_is_no_image(bench):
    assert "image" not in {finding.what for finding in bench.look(**local())}


def test_secrets_and_certificates_of_the_farm(tmp_path, monkeypatch):
    farm = resolve(flags={"run_root": str(tmp_path), "balancer.tls": "auto"}, ambient=False).farm
    assert list(secret_findings(farm)) == [], "they are made at first use"
    root = FarmDir(tmp_path)
    make_secret(root.token), make_secret(root.server_key), made_certificate(root, ["127.0.0.1"])

    def bad() -> dict[str, str]:
        return {one.what: f"{one.found}; {one.remedy}" for one in secret_findings(farm) if not one.ok}

    good = [finding.what for finding in secret_findings(farm) if finding.ok]
    names = ["secret token", "secret server-key", "key certificate.key", "key endpoint.key"]
    assert good == [*names, "certificate certificate.pem", "certificate endpoint.pem"]
    for name in ("token", "endpoint.key"):
        (root.secrets / name).chmod(0o644)
    root.server_key.write_text("short\n")
    found = bad()
    assert list(found) == ["secret token", "secret server-key", "key endpoint.key"]
    assert "(mode 0644); replace the secret, then 'chmod 600'" in found["secret token"]
    assert "holds no secret" in found["secret server-key"] and "remove the file" in found["secret server-key"]
    monkeypatch.setattr(certificate, "_SOON", 10000 * 86400)
    ends = "ends within 30 days; restart the monitors, which make a new one"
    assert bad()["certificate endpoint.pem"].endswith(ends)
    pem, key = root.secrets / "endpoint.pem", root.secrets / "endpoint.key"
    given = {"balancer.tls": "given", "balancer.certificate": str(pem), "balancer.certificate_key": str(key)}
    farm = resolve(flags={"run_root": str(tmp_path), **given}, ambient=False).farm
    assert bad()["certificate endpoint.pem"].endswith("renew balancer.certificate, then restart the monitors")
