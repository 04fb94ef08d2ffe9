"""Events go to the farm that they are meant for: a stranger's endpoint on the same port gets none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from balancers import free_listen, member
from fakes.running import fake_triton
from runs import make_events

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.ownership import EndpointId, farm_id, parse_endpoint_id
from exatrkx_hpc.base.process_id import boot_id, host_name
from exatrkx_hpc.fleet.balancer.base import Listen
from exatrkx_hpc.fleet.balancer.nginx import Nginx
from exatrkx_hpc.fleet.endpoint import EndpointRecord, running_endpoint, write_endpoint
from exatrkx_hpc.fleet.events import MonitorAbsent
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.work.inference.client import Client
from exatrkx_hpc.work.inference.ownership import require_ours
from exatrkx_hpc.work.map.endpoint import Endpoint
from exatrkx_hpc.work.run.run import Settings, run_clients

OURS = EndpointId(farm="exatrkx-00000000", job="42", instance="0123456789ab")
HITS = np.zeros((3, 3), dtype=np.float32)


def test_an_identity_is_written_and_read():
    assert parse_endpoint_id(str(OURS)) == OURS
    assert parse_endpoint_id(f"{OURS}, another/1/a") == OURS
    for text in ("", "a", "a/b", "a/b/c/d", "a b/1/c"):
        assert parse_endpoint_id(text) is None
    assert OURS.same_job(replace(OURS, instance="f"))
    assert not OURS.same_job(replace(OURS, job="43")) and not OURS.same_job(None)


def test_two_farms_of_one_name_are_two():
    assert farm_id("exatrkx", "/home/a/exatrkx-hpc") != farm_id("exatrkx", "/home/b/exatrkx-hpc")


@contextlib.contextmanager
def endpoint(folder: Path, listen: Listen, identity: EndpointId, *switches: str) -> Iterator[Nginx]:
    """The endpoint of a farm with one server that answers."""
    with fake_triton(*switches) as fake:
        balancer = Nginx(folder, replace(listen, farm=identity.farm, job=identity.job))
        balancer.start([member("well", "127.0.0.1", grpc_port=int(fake.server.rpartition(":")[2]))])
        try:
            yield balancer
        finally:
            balancer.stop(grace=1)


def find_tracks(server: str, identity: str, patience: float = 0.0) -> int:
    async def ask() -> int:
        async with Client(server, model="exatrkx", identity=identity, patience=patience) as client:
            return len(await client.find_tracks(HITS))

    return asyncio.run(ask())


def test_ones_own_endpoint_is_used_also_after_a_new_start(nginx, tmp_path):
    with endpoint(tmp_path, free_listen(), OURS) as balancer:
        server = balancer.listen.grpc
        for identity in ("", str(balancer.identity), str(replace(OURS, instance="another"))):
            require_ours(server, identity)
            assert find_tracks(server, identity) == 3


@pytest.mark.parametrize("stranger", [replace(OURS, job="43"), replace(OURS, farm="exatrkx-11111111")])
def test_a_strangers_endpoint_gets_no_event(nginx, tmp_path, stranger):
    with endpoint(tmp_path, free_listen(), stranger) as balancer:
        whose = f"is the endpoint of {stranger.farm}, job {stranger.job}; expected exatrkx-00000000, job 42"
        with pytest.raises(EndpointError, match=whose):
            require_ours(balancer.listen.grpc, str(OURS))
        with pytest.raises(EndpointError, match=whose):
            find_tracks(balancer.listen.grpc, str(OURS))


def test_an_endpoint_of_the_library_is_checked_too(nginx, tmp_path):
    with endpoint(tmp_path, free_listen(), OURS) as balancer:
        with Endpoint(balancer.listen.grpc, identity=str(OURS)) as ours:
            assert len(ours.find_tracks(HITS)) == 3
        with (
            Endpoint(balancer.listen.grpc, identity=str(replace(OURS, job="43")), patience=0.0) as theirs,
            pytest.raises(EndpointError, match="job 42; expected exatrkx-00000000, job 43"),
        ):
            theirs.find_tracks(HITS)


def test_what_is_no_endpoint_of_a_farm_gets_no_event():
    with fake_triton() as fake, pytest.raises(EndpointError, match="is not an endpoint of this farm"):
        find_tracks(fake.server, str(OURS))


def test_a_run_refuses_a_strangers_endpoint_before_any_event(nginx, tmp_path):
    make_events(tmp_path / "events", [3, 4, 5])
    with endpoint(tmp_path / "nginx", free_listen(), replace(OURS, job="43")) as balancer:
        settings = Settings(
            server=balancer.listen.grpc, identity=str(OURS), events=tmp_path / "events", out=tmp_path / "out"
        )
        with pytest.raises(EndpointError, match="job 43; expected exatrkx-00000000, job 42"):
            run_clients(settings)
    assert not list((tmp_path / "out").rglob("*.csv"))


def test_a_stranger_that_takes_the_port_during_a_run_gets_no_event(nginx, tmp_path):
    """The client's connection breaks with its endpoint; before the next event, it asks who answers."""
    listen, notes = free_listen(), tmp_path / "notes"

    async def ask() -> None:
        async with Client(listen.grpc, model="exatrkx", identity=str(OURS), patience=1) as client:
            with endpoint(tmp_path / "ours", listen, OURS):
                assert len(await client.find_tracks(HITS)) == 3
            with (
                endpoint(tmp_path / "theirs", listen, replace(OURS, job="43"), "--notes", str(notes)),
                pytest.raises(EndpointError, match="job 43"),
            ):
                await client.find_tracks(HITS)
            assert not notes.exists()
            with endpoint(tmp_path / "again", listen, OURS):
                assert len(await client.find_tracks(HITS)) == 3

    asyncio.run(ask())


# The record of an endpoint


def a_record(farm: FarmDir, balancer: Nginx | None, **values: object) -> EndpointRecord:
    listen = balancer.listen if balancer is not None else free_listen()
    facts = {
        "job": "42",
        "grpc": listen.grpc,
        "http": listen.http,
        "prometheus": "",
        "metrics": {},
        "ready": 1,
        "identity": str(OURS),
        "host": host_name(),
        "boot": boot_id(),
        "monitor_pid": 1 << 22,
        "monitor_started": 1,
        "updated": 0.0,
    }
    record = EndpointRecord.model_validate({**facts, **values})
    run_dir = farm.job("42")
    run_dir.path.mkdir(parents=True, exist_ok=True)
    write_endpoint(run_dir, record)
    return record


def test_a_record_of_1970_is_not_believed(tmp_path):
    farm = FarmDir(tmp_path)
    a_record(farm, None)
    with pytest.raises(EndpointError, match=r"no monitor since 19(69|70)-.*, \d+ days ago, and nothing of this job"):
        running_endpoint(farm, "42")


def test_a_heartbeat_of_another_machine_counts_for_a_while(tmp_path):
    farm = FarmDir(tmp_path)
    a_record(farm, None, host="elsewhere", heartbeat=time.time())
    assert running_endpoint(farm, "42").job == "42"
    a_record(farm, None, host="elsewhere", heartbeat=time.time() - 100)
    with pytest.raises(EndpointError, match=r"no monitor since .*, 1 min 40 s ago"):
        running_endpoint(farm, "42")
    a_record(farm, None, host="elsewhere", heartbeat=time.time() - 100, interval=60)
    assert running_endpoint(farm, "42").job == "42", "its monitor looks once a minute"


def test_a_balancer_without_a_monitor_is_used_with_a_warning(nginx, tmp_path):
    farm, news = FarmDir(tmp_path), []
    with endpoint(tmp_path / "nginx", free_listen(), OURS) as balancer:
        a_record(farm, balancer, heartbeat=time.time() - 100)
        assert running_endpoint(farm, "42", tell=news.append).grpc == balancer.listen.grpc
    assert [type(one) for one in news] == [MonitorAbsent]
    assert "servers that die stay listed; start 'exatrkx-hpc monitor 42'" in str(news[0])


def test_a_strangers_balancer_at_the_recorded_address_is_refused(nginx, tmp_path):
    farm = FarmDir(tmp_path)
    with endpoint(tmp_path / "nginx", free_listen(), replace(OURS, job="43")) as balancer:
        a_record(farm, balancer)
        with pytest.raises(EndpointError, match="is now the endpoint of exatrkx-00000000/43/"):
            running_endpoint(farm, "42")


def test_the_record_of_an_earlier_version_has_an_age(tmp_path):
    run_dir = FarmDir(tmp_path).job("42")
    run_dir.path.mkdir()
    told = {"job": "42", "grpc": "127.0.0.1:1", "http": "127.0.0.1:2", "prometheus": "", "metrics": {}, "ready": 1}
    run_dir.endpoint.write_text(json.dumps({**told, "monitor_pid": 1, "updated": 0}))
    with pytest.raises(EndpointError, match="no monitor since"):
        running_endpoint(FarmDir(tmp_path), "42")
