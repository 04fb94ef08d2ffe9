"""A farm on a real Slurm cluster, its monitor, and clients that load it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster import Cluster, ClusterConfig, Entered, cluster
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.models.repository import CONFIG, write_config
from exatrkx_hpc.tracking.simulation.synthetic import write_events
from steady_farm import special

USER = "physicist"
#: Clients, and requests in flight of each.
WORKERS, IN_FLIGHT = 8, 4
#: Instances of the model on a server.
_INSTANCES = 2
#: Seconds by which the farm's limit of a request is above that of a long one: nginx cuts none of them.
_SPARE = 30.0
FARM = """\
name = "steady"
site = "generic"
[job]
account = "m1234"
partition = "gpu"
gpus_per_node = 4
nodes = 3
time = "02:00:00"
requeue = true
[server]
device = "cpu"
drain = 1
exit_timeout = 3
model_repository = "{models}"
extra_arguments = ["--disable-auto-complete-config"]
[balancer]
host = "127.0.0.1"
grpc_port = 9191
[monitor]
prometheus = true
prometheus_port = 0
[clients]
request_timeout = {timeout}
patience = {patience}
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How heavy the load is: the events of a row, and in seconds a long request and the patience.

    The clients of a row must end within `deadline` seconds. `source` is a checkout of this project whose commands the
    cluster's user runs; None is this one.
    """

    events: int = 2000
    long: float = 90.0
    patience: float = 600.0
    deadline: float = 900.0
    source: Path | None = None


@dataclass
class Site:
    """A cluster with a farm of three servers behind an endpoint; `job` is the farm's present job."""

    cluster: Cluster
    options: Options
    job: str = ""
    _monitor: Entered | None = None
    started: list[Entered] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The user's home, which all machines share."""
        return self.cluster.home(USER)

    @property
    def monitor(self) -> Entered:
        """The running monitor; raises RuntimeError as `require_monitor`."""
        return self.require_monitor()

    def require_monitor(self) -> Entered:
        """Return the monitor; raises RuntimeError, with what it said last, if it does not run."""
        if self._monitor is None or self._monitor.returncode() is not None:
            log = self._monitor.log.read_text()[-1000:] if self._monitor is not None else "it was not started"
            raise RuntimeError(f"no monitor runs: {log}")
        return self._monitor

    @property
    def control(self) -> Path:
        """The folder of the files that switch the model's faults."""
        return self.home / "control"

    @property
    def kept(self) -> Path:
        """The folder of the events as they were, without special ones."""
        return self.home / "kept"

    @property
    def run_dir(self) -> Path:
        """The run directory of the job."""
        return self.home / "exatrkx-hpc" / self.job

    def environment(self) -> Mapping[str, str]:
        """Return the variables that make the user run the commands of `options.source`."""
        source = self.options.source
        return {} if source is None else {"PYTHONPATH": str(source)}

    def do(self, *words: object, timeout: float = 150) -> Completed:
        """Run a command on the head as the user, in the home folder."""
        argv = [str(word) for word in words]
        return self.cluster.run(argv, cwd=self.home, timeout=timeout, env=self.environment())

    def good(self, *words: object, timeout: float = 150) -> str:
        """Run a command as `do` does; raises RuntimeError with its output when it fails."""
        done = self.do(*words, timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout} {done.stderr}")
        return done.stdout

    def as_root(self, *words: object, node: str = "") -> str:
        """Run a command as root on a node or the head; raises RuntimeError with its output when it fails."""
        host = self.cluster.node(node) if node else self.cluster.head
        done = host.run([str(word) for word in words], user="root")
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout} {done.stderr}")
        return done.stdout

    def spawn(self, words: Sequence[object], log: Path, *, user: str = USER, **variables: str) -> Entered:
        """Start a command on the head as a user; the site ends it."""
        argv = [str(word) for word in words]
        env = {**self.environment(), **variables}
        cwd = self.home if user == USER else None
        child = self.cluster.head.spawn(argv, log=log, user=user, cwd=cwd, env=env)
        self.started.append(child)
        return child

    def start_farm(self) -> None:
        """Deploy the farm, start its monitor, and wait until three servers are ready."""
        self.job = self.good("exatrkx-hpc", "deploy").strip().splitlines()[-1]
        self.start_monitor()
        self.wait_ready(3)

    def start_monitor(self) -> None:
        """Start a monitor of the job."""
        self._monitor = self.spawn(["exatrkx-hpc", "monitor", self.job], self.home / f"monitor-{self.job}.log")

    def stop_farm(self) -> None:
        """End the monitor and the job."""
        if self._monitor is not None:
            self._monitor.stop(grace=20)
        self.do("scancel", self.job)
        self.until(lambda: not self.do("squeue", "-h", "-j", self.job).stdout.strip(), "the end of the job", 60)

    def upstream(self) -> set[str]:
        """Return the servers to which the balancer sends requests."""
        try:
            text = (self.run_dir / "nginx" / "upstream.conf").read_text()
        except OSError:
            return set()
        first = text.split("upstream triton_http")[0]
        return {line.rpartition("# ")[2] for line in first.splitlines() if line.strip().startswith("server nid")
                or "# nid" in line}  # fmt: skip

    def wait_ready(self, servers: int, deadline: float = 150) -> None:
        """Wait until the balancer has `servers` servers."""
        self.until(lambda: len(self.upstream()) == servers, f"{servers} servers behind the balancer", deadline)

    def until(self, condition: Callable[[], object], what: str, deadline: float) -> float:
        """Wait for the condition and return the seconds it took; raises TimeoutError."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > deadline:
                raise TimeoutError(f"{what} took more than {deadline:g} s")
            time.sleep(0.1)
        return time.monotonic() - began

    def pid_of_server(self, node: str) -> int:
        """Return the process ID of the Triton of a node, inside that node."""
        return int(self.as_root("pgrep", "-o", "-x", "tritonserver", node=node).split()[0])

    def kill_server(self, node: str) -> None:
        """Kill the Triton of a node."""
        self.as_root("kill", "-KILL", self.pid_of_server(node), node=node)

    @property
    def monitor_pid(self) -> int:
        """The process ID of the monitor, inside the head."""
        self.require_monitor()
        return int(self.as_root("pgrep", "-n", "-f", f"exatrkx-hpc monitor {self.job}"))

    @property
    def endpoint_port(self) -> int:
        """The gRPC port of the endpoint."""
        return int(json.loads((self.run_dir / "endpoint.json").read_text())["grpc"].rpartition(":")[2])

    @property
    def nginx(self) -> int:
        """The process ID of nginx, inside the head."""
        return int((self.run_dir / "nginx" / "nginx.pid").read_text())

    def behave(self, node: str, how: str) -> None:
        """Switch the behaviour of a node's server."""
        (self.control / node).write_text(how)

    def pace(self, seconds: float) -> None:
        """Make the events of a row last so many seconds behind three well servers."""
        (self.control / "pace").write_text(f"{seconds * 3 * _INSTANCES / self.options.events:.4f}")

    def calm(self) -> None:
        """Switch all faults of the model off and forget the deliveries."""
        for path in self.control.iterdir():
            path.unlink()

    def deliveries(self) -> int:
        """Return how often special events reached a server."""
        try:
            return len((self.control / "deliveries").read_text().splitlines())
        except OSError:
            return 0

    def clients(self, out: str, *more: object) -> list[object]:
        """Return the command that loads the farm."""
        load = ["-n", WORKERS, "-j", IN_FLIGHT, "-d", "events", "-o", out]
        return ["exatrkx-hpc", "run-clients", *load, "--json", "-q", *more]

    def labels(self, out: str) -> int:
        """Return the number of results."""
        folder = self.home / out / "labels"
        return sum(1 for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else 0


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What a run left: events without a right result or with two, events blamed, and the slowest event done (s)."""

    events: int
    lost: tuple[str, ...]
    wrong: tuple[str, ...]
    twice: tuple[str, ...]
    quarantined: tuple[str, ...]
    slowest: float


def tally(site: Site, out: str) -> Tally:
    """Compare the results in `out` with what the model answers for each event, and read the ledger."""
    folder = site.home / "events"
    lost, wrong = [], []
    for path in sorted(folder.iterdir()):
        result = site.home / out / "labels" / path.name
        if not result.exists():
            lost.append(path.stem)
        elif not special.right(path, result):
            wrong.append(path.stem)
    with contextlib.closing(sqlite3.connect(site.home / out / "ledger.sqlite")) as db:
        blamed = [name for (name,) in db.execute("SELECT name FROM events WHERE state = 'quarantined'")]
        (slowest,) = db.execute("SELECT max(seconds) FROM events").fetchone()
    return Tally(
        events=len(list(folder.iterdir())),
        lost=tuple(lost),
        wrong=tuple(wrong),
        twice=_twice(site.home / out / "results.jsonl"),
        quarantined=tuple(blamed),
        slowest=slowest or 0.0,
    )


def _twice(journal: Path) -> tuple[str, ...]:
    """Return the events with more than one result in the journal, which older versions do not write."""
    lines = map(json.loads, journal.read_text().splitlines()) if journal.exists() else ()
    results = Counter(line["result"]["name"] for line in lines if "result" in line)
    return tuple(name for name, number in results.items() if number > 1)


@contextlib.contextmanager
def farm(options: Options) -> Iterator[Site]:
    """Bring up a cluster with a farm of three servers and its monitor."""
    keep = [options.source] if options.source else []
    with cluster(ClusterConfig(nodes=4, kill_wait=5), keep=keep) as c:
        c.wait_idle()
        site = Site(c, options)
        site.control.mkdir()
        models = site.home / "models"
        _repository(models, site)
        text = FARM.format(models=models, timeout=options.long + _SPARE, patience=options.patience)
        (site.home / "farm.toml").write_text(text)
        make_events(site.kept, options.events)
        give(site, site.home)
        try:
            site.start_farm()
            yield site
            site.stop_farm()
        finally:
            for child in site.started:
                child.stop(grace=10)


def give(site: Site, folder: Path) -> None:
    """Make the user own a folder and what is in it."""
    user = site.cluster.config.user(USER)
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, user.uid, user.uid)


def _repository(folder: Path, site: Site) -> None:
    config = ModelConfig(name="exatrkx", backend="python")
    config.input.add(name="FEATURES", data_type=DataType.TYPE_FP32, dims=[-1, 3])
    config.output.add(name="LABELS", data_type=DataType.TYPE_INT64, dims=[-1])
    config.instance_group.add(count=_INSTANCES, kind="KIND_CPU")
    values = {"control": site.control, "long": site.options.long}
    for name, value in values.items():
        config.parameters[name].string_value = str(value)
    (folder / "exatrkx" / "1").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("model.py"), folder / "exatrkx" / "1" / "model.py")
    write_config(folder / "exatrkx" / CONFIG, config)


def make_events(folder: Path, number: int) -> None:
    """Write `number` events: the reference events again and again, or made ones where those are not at hand."""
    reference = os.environ.get("EXATRKX_REFERENCE_DATA")
    if not reference:
        write_events(folder, events=number, tracks=40, seed=8)
        return
    folder.mkdir()
    found = sorted(Path(reference, "exatrkx", "events_scaled").glob("*.csv"))
    for event in range(number):
        shutil.copyfile(found[event % len(found)], folder / f"{found[event % len(found)].stem}_{event}.csv")
