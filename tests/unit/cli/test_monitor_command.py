"""What `monitor` does with its balancer when an error ends it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.news import untold
from exatrkx_hpc.cli import farm_commands


class Watch:
    """A watch of which `fails` (start or wait) raises; `calls` has how it was ended."""

    def __init__(self, fails: str) -> None:
        self.fails = fails
        self.calls: list[str] = []

    def start(self) -> None:
        self._step("start")

    def wait(self) -> None:
        self._step("wait")

    def stop(self) -> None:
        self.calls.append("stop")

    def leave(self) -> None:
        self.calls.append("leave")

    def _step(self, name: str) -> None:
        if name == self.fails:
            raise EndpointError("no")


@pytest.mark.parametrize(("fails", "end"), [("start", "stop"), ("wait", "leave")])
@pytest.mark.parametrize("leave", [False, True])
def test_an_endpoint_that_never_opened_is_not_left(monkeypatch, fails, end, leave):
    """A balancer that starts after the deadline would serve on without a server, and without a monitor."""
    watch = Watch(fails)
    monkeypatch.setattr(farm_commands.story, "watch", lambda *_, **__: watch)
    with pytest.raises(EndpointError):
        farm_commands._monitor(SimpleNamespace(id="7"), leave=leave, tell=untold)
    assert watch.calls == [end]
