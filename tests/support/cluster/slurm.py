"""The whole cluster: start, stop, and operations for tests."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from cluster import accounting, cgroups, triton
from cluster.conf_files import write_files
from cluster.config import ClusterConfig
from cluster.entering import Entered
from cluster.host import Head, Node
from cluster.patience import wait_for
from cluster.sight import covers, python_folders
from cluster.stale import new_base, sweep
from exatrkx_hpc.base.process import Completed


def cluster(config: ClusterConfig | None = None, *, keep: Sequence[Path] = ()) -> Cluster:
    """Return a cluster that is up inside a `with` block; `keep` lists more folders of this machine to show in it."""
    return Cluster(config or ClusterConfig(), keep=keep)


class Cluster:
    """A real Slurm. It runs inside a `with` block and leaves nothing behind."""

    def __init__(self, config: ClusterConfig, *, keep: Sequence[Path] = ()) -> None:
        """Describe it; entering the block creates and starts it."""
        self.config = config
        self._keep = [path.resolve() for path in keep]
        self._exit = contextlib.ExitStack()
        self._controller: Entered | None = None

    def __enter__(self) -> Cluster:
        """Start it; if that fails, clean up and raise ClusterError."""
        with contextlib.ExitStack() as stack:
            self._bring_up(stack)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and remove it."""
        self._exit.close()

    def _bring_up(self, stack: contextlib.ExitStack) -> None:
        sweep()
        self.base = new_base()
        stack.callback(shutil.rmtree, self.base)
        write_files(self.config, self.base, cgroup=cgroups.available())
        triton.install(self.base)
        database = accounting.begin_database(self.base)
        stack.callback(database.stop, grace=0)
        self._power_on(stack)
        accounting.start(self.head, self.config, self.base, database)
        self.start_controller()
        for node in self.nodes:
            node.start_slurmd()

    def _power_on(self, stack: contextlib.ExitStack) -> None:
        sight = covers([*python_folders(), *self._keep, self.base])
        self.head = Head(config=self.config, base=self.base, covers=sight)
        self.nodes = tuple(
            Node(number, head=self.head, config=self.config, base=self.base, covers=sight)
            for number in range(1, self.config.nodes + 1)
        )
        for host in (self.head, *self.nodes):
            stack.callback(host.power_off)
            host.power_on()
        for host in (self.head, *self.nodes):
            host.wait_on()

    @property
    def shared(self) -> Path:
        """A folder that all pretend machines and this one see under the same path, writable by all users."""
        return self.base / "shared"

    def home(self, user: str = "physicist") -> Path:
        """Return the home of a user, which all pretend machines share."""
        return self.base / "home" / user

    def node(self, name: str) -> Node:
        """Return the node of that name; raises KeyError when there is none."""
        return {node.name: node for node in self.nodes}[name]

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = "physicist",
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str = "",
    ) -> Completed:
        """Run `argv` on the head to its end, as `user`; see Host.run."""
        return self.head.run(argv, user=user, timeout=timeout, env=env, cwd=cwd, stdin=stdin)

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers; raises ClusterError with its last output."""
        log = self.base / "logs" / "slurmctld.log"
        self._controller = controller = self.head.spawn(["slurmctld", "-D"], log=log, user="root")
        wait_for(
            lambda: self.run(["scontrol", "ping"], user="root").returncode == 0,
            lives=lambda: controller.returncode() is None,
            what=lambda: f"slurmctld does not answer: {log.read_text(errors='replace')[-1000:]}",
        )

    def stop_controller(self) -> None:
        """Stop slurmctld, which keeps its state for the next start."""
        if self._controller is not None:
            self._controller.stop()

    def node_states(self) -> dict[str, str]:
        """Return each node's state from sinfo, such as idle, mixed or down, with a * if the node does not answer."""
        done = self.run(["sinfo", "--noheader", "--Node", "--format=%N %T"], user="root")
        return dict(line.split() for line in done.stdout.splitlines())

    def wait_idle(self, *names: str, deadline: float = 60.0) -> None:
        """Wait until the named nodes (default: all) are idle; raises ClusterError when the deadline passes."""
        wanted = names or self.config.node_names
        wait_for(
            lambda: all(self.node_states().get(name) == "idle" for name in wanted),
            what=lambda: f"not idle: {self.node_states()}; slurmctld says: {self.log('slurmctld')[-1000:]}",
            deadline=deadline,
        )

    def log(self, name: str) -> str:
        """Return the log of slurmctld, slurmdbd, slurmd (of all nodes), database or a host by its name."""
        return (self.base / "logs" / f"{name}.log").read_text(errors="replace")
