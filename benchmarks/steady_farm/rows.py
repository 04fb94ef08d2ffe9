"""The faults, a function each: what happens to a farm under load, and how the harm is undone."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steady_farm.site import Site

#: Seconds for which a row waits until the balancer has followed a change.
_FOLLOWS = 60.0
#: The head, and the nodes of the farm.
_MACHINES = ("", "nid001", "nid002", "nid003")
_FAKES = Path(__file__).resolve().parents[2] / "tests" / "support" / "fakes"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault.

    `happens` runs when the clients are in the middle of their events; it returns the seconds until the balancer's list
    was right again (infinity: never), or None if the list need not change. Well servers take `lasts` seconds for the
    events, more than the fault, so that it always meets a load. `undo` makes the farm whole for the next
    row. `special` is the kind of the `specials` planted events. `prefix` is put before the clients' command, `more`
    after it. `resumes` says that the clients end early and are started again, `fresh` that the farm is started anew
    after the row, `short` that the test suite runs the row, too.
    """

    name: str
    happens: Callable[[Site], float | None] = lambda site: None
    undo: Callable[[Site], None] = lambda site: None
    lasts: float = 40.0
    special: str = ""
    specials: int = 1
    prefix: tuple[str, ...] = ()
    more: tuple[object, ...] = ()
    resumes: bool = False
    fresh: bool = False
    short: bool = False


def _left_out(site: Site, node: str) -> float:
    """Return the seconds until the balancer leaves out a node's server; infinity if it does not in time."""
    try:
        return site.until(lambda: f"{node}-0" not in site.upstream(), f"the balancer to leave out {node}", _FOLLOWS)
    except TimeoutError:
        return math.inf


def _kill_server(site: Site) -> float:
    site.kill_server("nid001")
    return _left_out(site, "nid001")


def _stop_server(site: Site) -> float:
    site.as_root("pkill", "-STOP", "-x", "tritonserver", node="nid001")
    return _left_out(site, "nid001")


def _behaves(how: str) -> Callable[[Site], float]:
    def happens(site: Site) -> float:
        site.behave("nid001", how)
        return _left_out(site, "nid001")

    return happens


def _crash(node: str) -> Callable[[Site], float]:
    def happens(site: Site) -> float:
        site.cluster.node(node).crash()
        return _left_out(site, node)

    return happens


def _boot(node: str) -> Callable[[Site], None]:
    def undo(site: Site) -> None:
        site.cluster.node(node).boot()
        site.cluster.wait_idle(node)

    return undo


def _cut_off(site: Site) -> float:
    site.cluster.node("nid002").partition()
    try:
        seconds = _left_out(site, "nid002")
        time.sleep(max(0.0, 20 - min(seconds, 20)))
    finally:
        site.cluster.node("nid002").heal()
    return seconds


def _reload_often(site: Site) -> None:
    for _ in range(50):
        site.as_root("kill", "-HUP", site.nginx)
        time.sleep(site.options.long / 75)


def _kill_balancer(site: Site) -> None:
    master = site.nginx
    workers = site.as_root("pgrep", "-P", master).split()
    site.as_root("kill", "-KILL", master, *workers)


def _kill_monitor(site: Site) -> None:
    monitor = site.monitor
    monitor.send(signal.SIGKILL)
    monitor.wait(10)
    time.sleep(3)
    site.start_monitor()


def _stranger(site: Site) -> None:
    """Kill monitor and balancer, and let a colleague's server answer at the same port for a while."""
    monitor = site.monitor
    monitor.send(signal.SIGKILL)
    monitor.wait(10)
    _kill_balancer(site)
    log = site.cluster.home("colleague") / "stranger.log"
    port = site.endpoint_port
    words = [sys.executable, _FAKES / "fake_triton.py", "--host", "127.0.0.1", "--port", port]
    stranger = site.spawn(words, log, user="colleague")
    site.until(lambda: log.exists() and str(port) in log.read_text(), "the stranger's address", 30)
    time.sleep(10)
    stranger.stop(grace=5)
    site.start_monitor()


def _drop_ssh(site: Site) -> None:
    clients = site.started[-1]
    clients.send(signal.SIGHUP)
    if clients.wait(60) is None:
        raise TimeoutError("the clients did not end after SIGHUP")


def _all_gone(site: Site) -> None:
    nodes = ("nid001", "nid002", "nid003")
    for node in nodes:
        site.as_root("pkill", "-STOP", "-x", "tritonserver", node=node)
    time.sleep(30)
    for node in nodes:  # a server that its script has restarted meanwhile is not stopped
        site.as_root("pkill", "-CONT", "-x", "tritonserver", node=node)


def _requeue(site: Site) -> None:
    site.good("scontrol", "requeue", site.job)
    # A requeued job is held for two minutes unless its owner moves its start.
    move = ("scontrol", "update", f"jobid={site.job}", "StartTime=now")
    site.until(lambda: site.do(*move).returncode == 0, "the start of the requeued job", 60)


def _controller_down(site: Site) -> None:
    site.cluster.stop_controller()
    try:
        site.kill_server("nid001")
        time.sleep(60)
    finally:
        site.cluster.start_controller()


def _no_forks(site: Site) -> None:
    """Forbid the monitor new processes and threads, as its user may."""
    pid = site.monitor_pid
    limit = site.good("prlimit", "--nproc", "--noheadings", "--output=SOFT", "--pid", pid).strip()
    site.good("prlimit", "--nproc=0:", "--pid", pid)
    try:
        site.kill_server("nid001")  # nginx must be reloaded, which needs a fork
        time.sleep(20)
    finally:
        site.good("prlimit", f"--nproc={limit}:", "--pid", pid)


def _read_only(site: Site) -> None:
    root = site.run_dir
    site.as_root("mount", "--bind", root, root)
    try:
        site.as_root("mount", "-o", "remount,bind,ro", root)
        time.sleep(20)
    finally:
        site.as_root("umount", "-l", root)


def _full(site: Site) -> None:
    """Put the run directory on a small file system of its own, on every machine, and fill that for a while."""
    image, ballast, root = site.home / "full.img", site.run_dir / "ballast", site.run_dir
    site.as_root("sh", "-c", f"truncate -s 64M {image} && mkfs.ext4 -q -m 0 -d {root} {image}")
    for node in _MACHINES:
        site.as_root("mount", "-o", "loop", image, root, node=node)
    site.as_root("chown", f"--reference={site.home}", root)
    try:
        for block in ("64k", "1k"):  # each ends when nothing of this size fits
            site.do("dd", "if=/dev/zero", f"of={ballast}", f"bs={block}", "oflag=append", "conv=notrunc")
        if not site.do("sh", "-c", f"echo a line > {root}/more").returncode:
            raise RuntimeError("the disk is not full")
        site.kill_server("nid001")
        time.sleep(20)
    finally:
        site.good("rm", "-f", ballast, root / "more")


def _own_disk_away(site: Site) -> None:
    for node in _MACHINES:
        site.as_root("umount", "-l", site.run_dir, node=node)
    (site.home / "full.img").unlink()


def _unreadable_record(site: Site) -> None:
    """Cover one record by a file that cannot be read: reading a process's memory at 0 gives EIO."""
    record = site.run_dir / "records" / "nid001-0.json"
    site.as_root("mount", "--bind", f"/proc/{site.monitor_pid}/mem", record)
    try:
        time.sleep(20)
    finally:
        site.as_root("umount", "-l", record)


def _full_prometheus(site: Site) -> None:
    """Give Prometheus a disk without space, and kill it."""
    folder = site.run_dir / "prometheus"
    site.as_root("mount", "-t", "tmpfs", "-o", "size=4k", "full", folder)
    try:
        site.as_root("dd", "if=/dev/zero", f"of={folder}/ballast", "bs=4k", "count=1")
        site.as_root("pkill", "-KILL", "-x", "prometheus")
        site.kill_server("nid001")  # the endpoint must follow all the same
        time.sleep(15)
    finally:
        site.as_root("umount", "-l", folder)


ROWS: tuple[Row, ...] = (
    Row(name="undisturbed", lasts=10, short=True),
    Row(name="SIGKILL of a server", happens=_kill_server, lasts=15, short=True),
    Row(name="SIGSTOP of a server", happens=_stop_server),
    Row(name="a server answers INTERNAL to all", happens=_behaves("errors"), lasts=25, short=True),
    Row(name="a server answers wrong shapes", happens=_behaves("shapes")),
    Row(name="a server is 50 times slower", happens=_behaves("slow 50")),
    Row(name="a node crashes", happens=_crash("nid002"), undo=_boot("nid002"), fresh=True),
    Row(name="a node is cut off for 20 s", happens=_cut_off, fresh=True),
    Row(name="the job's first node dies", happens=_crash("nid001"), undo=_boot("nid001"), fresh=True),
    Row(name="an event kills its server", special="kills", lasts=10, short=True),
    Row(name="an event hangs its server", special="hangs", fresh=True),
    Row(name="an event exhausts its server", special="exhausts", fresh=True),
    Row(name="50 reloads in a minute, long requests across", special="long", specials=4, happens=_reload_often),
    Row(name="the balancer is killed", happens=_kill_balancer, lasts=10, short=True),
    Row(name="the monitor is killed and started again", happens=_kill_monitor, lasts=15, short=True),
    Row(name="both are killed, a stranger on the port", happens=_stranger, resumes=True, fresh=True),
    Row(name="ssh of the clients is dropped", happens=_drop_ssh, resumes=True, lasts=10, short=True),
    Row(
        name="many requests under ulimit -Sn 1024",
        prefix=("bash", "-c", 'ulimit -Sn 1024; exec "$@"', "--"),
        more=("-n", 8, "-j", 150),
    ),
    Row(name="the job is requeued by Slurm", happens=_requeue, fresh=True),
    Row(name="every server gone for 30 s", happens=_all_gone),
    Row(name="slurmctld down for 60 s", happens=_controller_down, lasts=100),
    Row(name="fork fails", happens=_no_forks),
    Row(name="the run directory read-only for 20 s", happens=_read_only),
    Row(name="the run directory's disk full for 20 s", happens=_full, undo=_own_disk_away, fresh=True),
    Row(name="EIO on a record", happens=_unreadable_record),
    Row(name="Prometheus' disk full", happens=_full_prometheus),
)

SHORT: tuple[Row, ...] = tuple(row for row in ROWS if row.short)
