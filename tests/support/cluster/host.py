"""The pretend machines: the head and the nodes. Each is a set of namespaces that its first process holds."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster import cgroups, network
from cluster.config import HEAD, ClusterConfig
from cluster.entering import Entered, enter_argv, only_child
from cluster.errors import ClusterError
from cluster.patience import wait_for
from cluster.sight import Cover
from exatrkx_hpc.base.process import Child, Completed, run, spawn

_ANCHOR = Path(__file__).with_name("anchor.sh")
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_NAMESPACES = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=private"]


class Host:
    """A pretend machine: its name, and programs inside it."""

    def __init__(self, name: str, *, config: ClusterConfig, base: Path, covers: Sequence[Cover]) -> None:
        """Describe it; nothing runs before `power_on`."""
        self.name = name
        self._config = config
        self._base = base
        self._covers = covers
        self._anchor: Child | None = None
        self._first: int | None = None
        self._entered: list[Entered] = []

    @property
    def first(self) -> int:
        """The PID of its first process; raises ClusterError if the machine is off."""
        if self._first is None:
            raise ClusterError(f"{self.name} is off; boot it first")
        return self._first

    @property
    def is_on(self) -> bool:
        """Whether the machine is on."""
        return self._first is not None

    def power_on(self) -> None:
        """Start its first process, without waiting; the process ends with the calling thread."""
        own = self._base / "hosts" / self.name
        (own / "cover").mkdir(parents=True, exist_ok=True)
        (own / "ready").unlink(missing_ok=True)
        words = [word for cover in self._covers for word in cover.words]
        anchor = ["bash", str(_ANCHOR), self.name, str(self._base), *words]
        argv = ["setpriv", "--pdeathsig=KILL", "--", "unshare", *_NAMESPACES, "--", *anchor]
        self._anchor = spawn(argv, log=self._base / "logs" / f"{self.name}.log")

    def wait_on(self, *, deadline: float = 30.0) -> None:
        """Wait until its files and munge are ready; raises ClusterError if it ends or the deadline passes."""
        if (anchor := self._anchor) is None:
            raise ClusterError(f"{self.name} is off; boot it first")
        log = self._base / "logs" / f"{self.name}.log"
        wait_for(
            (self._base / "hosts" / self.name / "ready").exists,
            lives=lambda: anchor.returncode() is None,
            what=lambda: f"{self.name} did not start: {log.read_text(errors='replace')[-500:]}",
            deadline=deadline,
            pause=0.01,
        )
        self._first = only_child(anchor.pid)
        (self._base / "hosts" / self.name / "first").write_text(f"{self._first}\n")

    def join(self) -> None:
        """Attach to a machine that another process has powered on, to run programs in it."""
        self._first = int((self._base / "hosts" / self.name / "first").read_text())

    def power_off(self) -> None:
        """Kill all its processes at once, like a power cut; safe to repeat."""
        if self._anchor is None:
            return
        first = self._first or only_child(self._anchor.pid, deadline=1.0)
        if first is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
            self._anchor.wait(10)
        self._anchor.stop(grace=0, first=signal.SIGKILL)
        for program in self._entered:
            program.stop(grace=5)
        self._entered.clear()
        cgroups.remove(self._base, self.name)
        self._anchor = self._first = None

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
        """Run `argv` inside as `user` in `cwd` (default: the user's home), like exatrkx_hpc.base.process.run.

        The environment is that of a fresh login, updated with `env`.
        """
        words, environment = self._entering(argv, user, env, cwd)
        return run(words, timeout=timeout, env=environment, stdin=stdin)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        user: str = "physicist",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Entered:
        """Start `argv` inside as `user`; append its output to `log`, a path on this machine, outside."""
        words, environment = self._entering(argv, user, env, cwd)
        program = Entered(spawn(words, log=log, env=environment), log)
        self._entered.append(program)
        return program

    def command(
        self, argv: Sequence[str], *, user: str = "physicist", env: Mapping[str, str] | None = None
    ) -> tuple[list[str], dict[str, str]]:
        """Return the command and the environment for another program, such as a terminal, to run `argv` inside."""
        return self._entering(argv, user, env, None)

    def _entering(
        self, argv: Sequence[str], user: str, env: Mapping[str, str] | None, cwd: Path | None
    ) -> tuple[list[str], dict[str, str]]:
        environment = self.environment(user) | dict(env or {})
        folder = str(cwd or environment["HOME"])
        return enter_argv(self.first, argv, uid=self._config.user(user).uid, cwd=folder), environment

    def environment(self, user: str) -> dict[str, str]:
        """Return the environment of a fresh login of `user`, with this project's commands on PATH."""
        home = "/root" if user == "root" else str(self._base / "home" / user)
        return {
            "HOME": home,
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "PATH": f"{self._base}/bin:{Path(sys.executable).parent}:{_SYSTEM_PATH}",
            "SCRATCH": str(self._base / "shared"),
        }


class Head(Host):
    """The login machine, with slurmctld, slurmdbd and the database; its bridge is the network."""

    def __init__(self, *, config: ClusterConfig, base: Path, covers: Sequence[Cover]) -> None:
        """Describe it; nothing runs before `power_on`."""
        super().__init__(HEAD, config=config, base=base, covers=covers)

    def wait_on(self, *, deadline: float = 30.0) -> None:
        """Wait like every machine, then create the network."""
        super().wait_on(deadline=deadline)
        network.make_bridge(self.first)


class Node(Host):
    """A compute node: slurmd with pretend GPUs. It can crash, boot, lose its network and regain it."""

    def __init__(self, number: int, *, head: Head, config: ClusterConfig, base: Path, covers: Sequence[Cover]) -> None:
        """Describe it; nothing runs before `power_on`."""
        super().__init__(config.node_names[number - 1], config=config, base=base, covers=covers)
        self._number = number
        self._head = head

    def wait_on(self, *, deadline: float = 30.0) -> None:
        """Wait like every machine, then join the network."""
        super().wait_on(deadline=deadline)
        network.plug(self._head.first, self.first, number=self._number)

    def start_slurmd(self) -> None:
        """Start slurmd, which tells slurmctld that the node has just booted."""
        self.spawn(["slurmd", "-D", "-b", "-N", self.name], log=self._base / "logs" / "slurmd.log", user="root")

    def crash(self) -> None:
        """Lose all processes, the network, /tmp and /dev/shm at once, without notice."""
        self.power_off()

    def boot(self) -> None:
        """Boot after a crash, with empty /tmp and /dev/shm; slurmctld resumes the node without a command."""
        if self.is_on:
            raise ClusterError(f"{self.name} is on; crash it first")
        self.power_on()
        self.wait_on()
        self.start_slurmd()

    def partition(self) -> None:
        """Lose the network, but keep running."""
        network.set_link(self._head.first, number=self._number, up=False)

    def heal(self) -> None:
        """Get the network back."""
        network.set_link(self._head.first, number=self._number, up=True)
