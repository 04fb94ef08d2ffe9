"""The faults, a function each: what happens to a farm under load, and how the harm is undone."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from steady_farm.site import Site

#: Seconds for which a row waits until the balancer has followed a change.
_FOLLOWS = 60.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault.

    `happens` runs when the clients are in the middle of their events; it returns the seconds until the balancer's list
    was right again, or None if the list need not change. `undo` makes the farm whole for the next row. `special` is
    the kind of a planted event; `prefix` is put before the clients' command; `resumes` says that the clients end and
    are started again.
    """

    name: str
    happens: Callable[[Site], float | None] = lambda site: None
    undo: Callable[[Site], None] = lambda site: None
    special: str = ""
    specials: int = 1
    prefix: tuple[str, ...] = ()
    more: tuple[object, ...] = ()
    resumes: bool = False
    fresh: bool = False
    short: bool = False
    configuration: Mapping[str, str] = field(default_factory=dict)


def _left_out(site: Site, node: str) -> float:
    """Return the seconds until the balancer leaves out a node's server; infinity if it does not in time."""
    try:
        return site.until(lambda: f"{node}-0" not in site.upstream(), f"the balancer to leave out {node}", _FOLLOWS)
    except TimeoutError:
        return math.inf


def _kill_server(site: Site) -> float:
    site.in_node("nid001", "kill", "-KILL", str(site.pid_of_server("nid001")))
    return _left_out(site, "nid001")


def _stop_server(site: Site) -> float:
    site.in_node("nid001", "pkill", "-STOP", "-x", "tritonserver")
    return _left_out(site, "nid001")


def _continue(site: Site) -> None:
    site.in_node("nid001", "pkill", "-CONT", "-x", "tritonserver")


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
    pid = (site.run_dir / "nginx" / "nginx.pid").read_text().strip()
    for _ in range(50):
        site.cluster.head.run(["kill", "-HUP", pid], user="root")
        time.sleep(site.options.long / 75)


def _kill_balancer(site: Site) -> None:
    pid = (site.run_dir / "nginx" / "nginx.pid").read_text().strip()
    site.cluster.head.run(["pkill", "-KILL", "-P", pid], user="root")
    site.cluster.head.run(["kill", "-KILL", pid], user="root")


def _kill_monitor(site: Site) -> None:
    assert site.monitor is not None
    site.monitor.send(signal.SIGKILL)
    site.monitor.wait(10)
    time.sleep(3)
    site.start_monitor()


def _drop_ssh(site: Site) -> None:
    clients = site.started[-1]
    clients.send(signal.SIGHUP)
    clients.wait(60)


def _all_gone(site: Site) -> None:
    for node in ("nid001", "nid002", "nid003"):
        site.in_node(node, "pkill", "-STOP", "-x", "tritonserver")
    time.sleep(30)
    for node in ("nid001", "nid002", "nid003"):
        site.in_node(node, "pkill", "-CONT", "-x", "tritonserver")


def _requeue(site: Site) -> None:
    site.good("scontrol", "requeue", site.job)
    until = time.monotonic() + 60
    while time.monotonic() < until:  # a requeued job is held for two minutes unless its owner moves its start
        if site.do("scontrol", "update", f"jobid={site.job}", "StartTime=now").returncode == 0:
            return
        time.sleep(1)


def _controller_down(site: Site) -> None:
    site.cluster.stop_controller()
    site.in_node("nid001", "kill", "-KILL", str(site.pid_of_server("nid001")))
    time.sleep(60)
    site.cluster.start_controller()


def _no_forks(site: Site) -> None:
    assert site.monitor is not None
    _limit(site, "0:0")
    time.sleep(5)
    site.in_node("nid001", "kill", "-KILL", str(site.pid_of_server("nid001")))
    time.sleep(15)
    _limit(site, "unlimited:unlimited")


def _limit(site: Site, processes: str) -> None:
    assert site.monitor is not None
    threading.Event().wait(0.1)
    done = site.cluster.run(["pgrep", "-f", "exatrkx-hpc monitor"], user="root")
    for pid in done.stdout.split():
        site.cluster.run(["prlimit", f"--nproc={processes}", "--pid", pid], user="root")


def _read_only(site: Site) -> None:
    root = str(site.run_dir)
    head = site.cluster.head
    head.run(["mount", "--bind", root, root], user="root")
    try:
        done = head.run(["mount", "-o", "remount,bind,ro", root], user="root")
        if done.returncode:
            raise RuntimeError(done.stderr)
        time.sleep(20)
    finally:
        head.run(["umount", "-l", root], user="root")


def _unreadable_record(site: Site) -> None:
    """Cover one record by a file that cannot be read: reading a process's memory at 0 gives EIO."""
    record = str(site.run_dir / "records" / "nid001-0.json")
    head = site.cluster.head
    assert site.monitor is not None
    done = head.run(["pgrep", "-f", "exatrkx-hpc monitor"], user="root")
    pid = done.stdout.split()[0]
    covered = head.run(["mount", "--bind", f"/proc/{pid}/mem", record], user="root")
    if covered.returncode:
        raise RuntimeError(covered.stderr)
    try:
        time.sleep(20)
    finally:
        head.run(["umount", "-l", record], user="root")


ROWS: tuple[Row, ...] = (
    Row(name="undisturbed", short=True),
    Row(name="SIGKILL of a server", happens=_kill_server, short=True),
    Row(name="SIGSTOP of a server", happens=_stop_server, undo=_continue),
    Row(name="a server answers INTERNAL to all", happens=_behaves("errors"), short=True),
    Row(name="a server answers wrong shapes", happens=_behaves("shapes")),
    Row(name="a server is 50 times slower", happens=_behaves("slow 50")),
    Row(name="a node crashes", happens=_crash("nid002"), undo=_boot("nid002"), fresh=True),
    Row(name="a node is cut off for 20 s", happens=_cut_off, fresh=True),
    Row(name="the job's first node dies", happens=_crash("nid001"), undo=_boot("nid001"), fresh=True),
    Row(name="an event kills its server", special="kills", short=True),
    Row(name="an event hangs its server", special="hangs"),
    Row(name="an event exhausts its server", special="exhausts"),
    Row(name="50 reloads in a minute, long requests across", special="long", specials=4, happens=_reload_often),
    Row(name="the balancer is killed", happens=_kill_balancer, short=True),
    Row(name="the monitor is killed and started again", happens=_kill_monitor, short=True),
    Row(name="ssh of the clients is dropped", happens=_drop_ssh, resumes=True, short=True),
    Row(
        name="many requests under ulimit -Sn 1024",
        prefix=("bash", "-c", 'ulimit -Sn 1024; exec "$@"', "--"),
        more=("-n", 8, "-j", 150),
    ),
    Row(name="the job is requeued by Slurm", happens=_requeue, fresh=True),
    Row(name="every server gone for 30 s", happens=_all_gone),
    Row(name="slurmctld down for 60 s", happens=_controller_down),
    Row(name="fork fails", happens=_no_forks),
    Row(name="the run directory read-only for 20 s", happens=_read_only),
    Row(name="EIO on a record", happens=_unreadable_record),
)
