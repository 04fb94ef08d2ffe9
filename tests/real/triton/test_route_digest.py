"""What a real Triton tells of the models of a route: a constant of one inner model changes the state of that model."""

from __future__ import annotations

import asyncio
from pathlib import Path

from triton_helper import running_triton

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.models.build import build
from exatrkx_hpc.work.inference.client import Client
from exatrkx_hpc.work.results.models import Served, changes


def served(server: str) -> Served:
    async def ask() -> Served:
        async with Client(server) as client:
            first, again = await client.served(), await client.served()
            assert first == again
            return first

    return asyncio.run(ask())


def test_a_constant_of_an_inner_model_changes_the_route(tmp_path: Path, triton) -> None:
    repository = tmp_path / "repository"
    build(asset("model_repos/exatrkx"), repository, device="cpu", instances=1, fused=False)
    (tmp_path / "one").mkdir()
    with running_triton(repository, tmp_path / "one") as running:
        before = served(running.grpc)
    assert before.version == "1" and before.digest
    assert set(before.models) == {"exatrkx", "embed", "frnn", "filter", "applyfilter", "gnn", "wcc"}
    assert all(state.startswith("version 1, configuration ") for state in before.models.values())
    config = repository / "wcc" / "config.pbtxt"
    text = config.read_text()
    assert '"0.75"' in text
    config.write_text(text.replace('"0.75"', '"0.8"').replace("count: 1", "count: 2"))
    (tmp_path / "two").mkdir()
    with running_triton(repository, tmp_path / "two") as running:
        after = served(running.grpc)
    said = changes(before.models, after.models)
    assert said.startswith("wcc was version 1, configuration ") and ";" not in said
