"""A real browser for tests: headless Chromium that can reach only a server of the test."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.base.process import find_program, run

REMEDY = "install the package 'chromium'"
_FLAGS = (
    "--window-size=1280,2000",
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps"),
    *("--disable-breakpad", "--disable-dev-shm-usage", "--disable-extensions", "--no-default-browser-check"),
    "--disable-features=OptimizationHints,MediaRouter,Translate",
    "--proxy-bypass-list=<-loopback>",  # use the proxy for loopback addresses, too
)
#: Requests that the browser sends on its own, whatever page it shows; no flag disables all of them.
_ERRANDS = re.compile(r"(https?://)?([\w-]+\.)*(google|googleapis|gvt1)\.com[:/]")
DARK = "--blink-settings=preferredColorScheme=0"


class Net(http.server.ThreadingHTTPServer):
    """The browser's whole network: it answers from `pages` (URL → HTML), else 404; `asked` lists the requested URLs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.asked: list[str] = []
        self.pages: dict[str, str] = {}

    @property
    def proxy(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Asked(http.server.BaseHTTPRequestHandler):
    server: Net

    def do_GET(self) -> None:
        if not _ERRANDS.match(self.path):
            self.server.asked.append(self.path)
        page = self.server.pages.get(self.path)
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write((page or "").encode())

    do_POST = do_CONNECT = do_HEAD = do_GET

    def log_message(self, *words: object) -> None:
        """Log nothing."""


@contextlib.contextmanager
def net() -> Iterator[Net]:
    """Yield a Net that answers inside the block."""
    with Net() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def browse(url: str, server: Net, folder: Path, *flags: str, picture: Path | None = None) -> str:
    """Load a page and return its DOM as HTML; save a screenshot to `picture`, if given."""
    profile = folder / "profile"
    argv = [find_program("chromium", remedy=REMEDY), *_FLAGS, *flags, f"--proxy-server={server.proxy}"]
    argv += [f"--user-data-dir={profile}", "--dump-dom"]
    argv += [f"--screenshot={picture}"] if picture else []
    home = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder), "PATH": "/usr/bin:/bin"}
    done = run([*argv, url], timeout=120, env=home, cwd=folder)
    assert done.returncode == 0, done.complaint
    return done.stdout
