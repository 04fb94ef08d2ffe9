"""Servers judged by their answers: one of two real Tritons turns sick under load, is ejected, and returns when well."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from addresses import own_address
from repositories import MODEL, tiny_repository
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import ExatrkxError
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.work.inference.client import Client

pytestmark = pytest.mark.usefixtures("triton", "nginx")
HITS = np.full((3, 3), 0.1, dtype=np.float32)
#: A model that fails every request at a node for which there is a file.
SICK = MODEL.replace(
    "        sizes =",
    """\
        import os
        if os.path.exists("FOLDER/" + os.environ["SLURMD_NODENAME"]):
            raise pb_utils.TritonModelException("this GPU is sick")
        sizes =""",
)


class Load:
    """Requests through the endpoint without any retry, one after the other, until the end of the block."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.answers = 0
        self.failures = 0
        self.streak = 0  # answers since the last failure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with Client(self.endpoint, patience=0, request_timeout=20) as client:
            while not self._stop.is_set():
                try:
                    await client.find_tracks(HITS)
                    self.answers += 1
                    self.streak += 1
                except ExatrkxError:
                    self.streak = 0
                    self.failures += 1


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def up(tmp_path: Path, lines: list[str]) -> Iterator[tuple[farm.Job, object]]:
    tiny_repository(tmp_path / "models")
    model = tmp_path / "models" / "exatrkx" / "1" / "model.py"
    model.write_text(SICK.replace("FOLDER", str(tmp_path / "sick")))
    (tmp_path / "sick").mkdir()
    flags = {
        "site": "local",
        "run_root": str(tmp_path),
        "cluster.local_address": own_address(last=1),
        "server.model_repository": str(tmp_path / "models"),
        "server.drain": 1,
        "balancer.grpc_port": 0,
        "balancer.http_port": 0,
        "monitor.prometheus": False,
        "monitor.sample_interval": 1,
        "monitor.eject_time": 2,
    }
    with farm.running(resolve(flags=flags).farm, tell=lambda news: lines.append(str(news)), wait=180) as (job, watch):
        yield job, watch


@pytest.mark.chaos
def test_a_server_that_answers_an_error_to_all_is_ejected_and_returns_by_a_real_inference(up, lines, tmp_path):
    job, watch = up
    victim = read_records(job.run_dir)[0]
    with Load(watch.endpoint) as load:
        # nginx's workers without a server end a moment after the reload with the first ones.
        until(lambda: load.streak > 40, what="answers", deadline=120)
        before = load.failures
        (tmp_path / "sick" / victim.node).write_text("")
        until(
            lambda: any(f"{victim.server}: ejected" in line for line in lines),
            what=f"an ejection: {lines}",
            deadline=120,
        )
        until(lambda: victim.address not in upstream(job), what="its departure from the upstream")
        told = {member.name: member.state for member in farm.status(job).servers}
        assert told[victim.server] == "ejected" and sorted(told.values()) == ["ejected", "ready"]
        assert load.failures > before
        until(lambda: load.streak > 100, what="answers of the other without a failure", deadline=120)
        (tmp_path / "sick" / victim.node).unlink()
        until(lambda: victim.address in upstream(job), what="its return", deadline=120)
        failures, answers = load.failures, load.answers
        until(lambda: load.answers > answers + 60, what="answers of both", deadline=120)
        assert load.failures == failures


@pytest.mark.chaos
def test_a_server_that_is_sick_from_the_start_gets_no_request(up, lines, tmp_path):
    job, watch = up
    victim = read_records(job.run_dir)[0]
    (tmp_path / "sick" / victim.node).write_text("")
    job.run_dir.word(victim.server).write_text("restart\n")
    until(
        lambda: any(f"{victim.server}: ejected (its trial failed" in line for line in lines),
        what=str(lines),
        deadline=120,
    )
    with Load(watch.endpoint) as load:
        until(lambda: load.answers > 60, what="answers", deadline=120)
    assert load.failures == 0
    assert "this GPU is sick" in next(one.note for one in farm.status(job).servers if one.name == victim.server)


def upstream(job: farm.Job) -> str:
    return (job.run_dir.balancer("nginx") / "upstream.conf").read_text()
