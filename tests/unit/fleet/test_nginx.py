"""nginx as the balancer: its configuration as text, and what it alone does. What all do is in test_balancers.py."""

from __future__ import annotations

import pytest
from balancers import free_listen, member

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.fleet.balancer.base import Listen
from exatrkx_hpc.fleet.balancer.nginx import Nginx, parse_version, render_main, render_upstream

LISTEN = Listen(host="127.0.0.1", grpc_port=9191, http_port=9190)


@pytest.mark.parametrize(("version", "name"), [((1, 22, 1), "old"), ((1, 25, 1), "new")])
def test_the_main_configuration_is_as_agreed(golden, version, name):
    golden(f"nginx.{name}.conf", render_main(LISTEN, version=version))


def test_the_upstream_is_as_agreed(golden):
    golden("upstream.conf", render_upstream([member("nid001-0"), member("nid002-0", "10.0.0.2")]))
    golden("upstream.empty.conf", render_upstream([]))


@pytest.mark.parametrize(
    ("text", "version"),
    [("nginx version: nginx/1.22.1\n", (1, 22, 1)), ("nginx version: nginx/1.31.3 (x)", (1, 31, 3)), ("?", ())],
)
def test_versions(text, version):
    assert parse_version(text) == version


def test_a_refused_configuration_is_not_kept(nginx, tmp_path):
    balancer = Nginx(tmp_path, free_listen())
    try:
        balancer.start([])
        good = (tmp_path / "upstream.conf").read_text()
        with pytest.raises(EndpointError, match="keeps the last valid one"):
            balancer.update([member(address="no such host !")])
        assert (tmp_path / "upstream.conf").read_text() == good
    finally:
        balancer.stop(grace=1)
