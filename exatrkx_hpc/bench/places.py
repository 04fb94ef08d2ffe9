"""The target of a measurement: a farm of a given size, started for the block, or the servers of a running job."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from exatrkx_hpc import farm as story
from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.credentials import NO_FILES, CredentialFiles
from exatrkx_hpc.base.errors import ConfigError, EndpointError
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.fleet.endpoint import EndpointRecord
from exatrkx_hpc.launch.events import ModelsBuilding
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.pipeline import is_fused
from exatrkx_hpc.models.repository import read_models
from exatrkx_hpc.prepare import gpus_of_server

_MOST_INSTANCES: Final = 64


@dataclass(frozen=True, kw_only=True)
class Target:
    """An endpoint with `servers` servers of `instances` instances each; `record` returns its current record.

    `files` has the credentials for it.
    """

    endpoint: str
    servers: int
    instances: int
    record: Callable[[], EndpointRecord]
    files: CredentialFiles = NO_FILES


def sized(farm: Farm, servers: int, instances: int) -> Farm:
    """Return `farm` with `servers` servers in total, `instances` instances each, free ports and no Prometheus.

    Nodes are filled: more than `server.servers_per_node` servers must be a multiple of it. Raises ConfigError for
    any other number, and for too many instances.
    """
    on_node = farm.server.servers_per_node
    if servers > on_node and servers % on_node:
        raise ConfigError(
            f"--servers {servers} does not fill nodes of {on_node} (server.servers_per_node); use a multiple of that"
        )
    if instances > _MOST_INSTANCES:
        raise ConfigError(f"--instances {instances} is too many; use {_MOST_INSTANCES} at most")
    nodes, on_node = (1, servers) if servers <= on_node else (servers // on_node, on_node)
    return _unobtrusive(farm).model_copy(
        update={
            "job": farm.job.model_copy(update={"nodes": nodes}),
            "server": farm.server.model_copy(update={"servers_per_node": on_node, "instances": instances}),
        }
    )


def _unobtrusive(farm: Farm) -> Farm:
    """Use any free ports and no Prometheus: only the scan uses the endpoint, and Prometheus would take CPU time."""
    return farm.model_copy(
        update={
            "balancer": farm.balancer.model_copy(update={"grpc_port": 0, "http_port": 0}),
            "monitor": farm.monitor.model_copy(update={"prometheus": False}),
        }
    )


@contextlib.contextmanager
def placed(farm: Farm, servers: int, instances: int, *, wait: float, tell: Tell) -> Iterator[Target]:
    """Run `farm` in this size for the block; its servers must be ready within `wait` seconds."""
    what = with_models(sized(farm, servers, instances), tell)
    with story.running(what, tell=tell, wait=wait, min_ready="100%") as (job, watch):
        yield Target(
            endpoint=watch.endpoint,
            servers=servers,
            instances=instances,
            record=lambda: story.endpoint_record(what, job.id),
            files=story.endpoint_access(what, job=job.id).files,
        )


def with_models(farm: Farm, tell: Tell) -> Farm:
    """Return `farm` with a separate model repository for its number of instances, built in the run root.

    The repository is a copy of the farm's, or of the shipped one if the farm has none.
    """
    source, shipped = source_models(farm), not Path(farm.server.model_repository).is_dir()
    out = FarmDir.of(farm).bench_models / str(farm.server.instances)
    fused = shipped or any(is_fused(model) for model in read_models(source))
    server = farm.server
    tell(ModelsBuilding(repository=str(out), device=server.device, instances=server.instances, fused=fused))
    build(source, out, device=server.device, instances=server.instances, gpus=gpus_of_server(farm), fused=fused)
    return farm.model_copy(update={"server": farm.server.model_copy(update={"model_repository": str(out)})})


def source_models(farm: Farm) -> Path:
    """Return the model repository that a scan measures: the farm's, or the shipped one if the farm has none."""
    repository = Path(farm.server.model_repository)
    return repository if repository.is_dir() else asset("model_repos/exatrkx")


@contextlib.contextmanager
def of_job(farm: Farm, job: str, *, wait: float, tell: Tell) -> Iterator[Target]:
    """Yield the endpoint of a running job: that of its monitor, or if none runs, a new one for the block.

    Raises EndpointError if the new one does not have all servers of `farm` ready within `wait` seconds.
    """
    found = story.find_job(farm, job)
    servers = farm.job.nodes * farm.server.servers_per_node
    try:
        record = story.endpoint_record(farm, found.id)
    except EndpointError:
        watch = story.watch(replace(found, farm=_unobtrusive(found.farm)), tell=tell)
        try:
            watch.start()
            watch.wait_ready(servers, timeout=wait)
            yield _target(farm, found.id, watch.endpoint)
        finally:
            watch.stop()
    else:
        yield _target(farm, found.id, record.grpc)


def _target(farm: Farm, job: str, endpoint: str) -> Target:
    def record() -> EndpointRecord:
        return story.endpoint_record(farm, job)

    return Target(
        endpoint=endpoint,
        servers=len(record().metrics),
        instances=farm.server.instances,
        record=record,
        files=story.endpoint_access(farm, job=job).files,
    )
