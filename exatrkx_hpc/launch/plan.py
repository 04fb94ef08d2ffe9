"""Make a plan of a farm: every value that the scripts need, computed once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from exatrkx_hpc import __version__
from exatrkx_hpc.config.resolve import DEFAULT, known_keys, value_of
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.engines.table import engine_of
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.secrets import restrictions
from exatrkx_hpc.launch.words import Var, Word

#: Distance between the HTTP ports of two servers on a node; the gRPC and metrics ports follow the HTTP port.
PORTS_PER_SERVER = 10


class Tool(BaseModel):
    """The program that starts Triton without a container, with its arguments and environment variables."""

    model_config = ConfigDict(frozen=True)

    triton: str
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


class Setting(BaseModel):
    """A value that was set: its dotted key, the value as TOML, and its source, if known."""

    model_config = ConfigDict(frozen=True)

    key: str
    value: str
    source: str


class FarmPlan(BaseModel):
    """All input of the scripts of one job."""

    model_config = ConfigDict(frozen=True)

    name: str
    site: str
    version: str
    settings: tuple[Setting, ...]
    run_root: str
    python: str
    nodes: int
    servers_per_node: int
    directives: tuple[tuple[str, str], ...]
    extra_directives: tuple[str, ...]
    step_options: tuple[str, ...]
    prologue: tuple[str, ...]
    epilogue: tuple[str, ...]
    gpus_per_server: int
    engine: str
    command: tuple[Word, ...]
    key_file: str
    exports: tuple[tuple[str, str], ...] = ()
    foreign: tuple[str, ...] = ()
    model_repository: str
    host_suffix: str
    base_port: int
    ports_per_server: int
    drain: int
    exit_timeout: int
    max_restarts: int
    give_up_after: int
    max_pause: int
    container_stop: tuple[Word, ...]
    beside: tuple[Word, ...] = ()
    companion: tuple[Word, ...] = ()


def make_plan(farm: Farm, *, tool: Tool | None = None, sources: Mapping[str, str] | None = None) -> FarmPlan:
    """Return the plan of `farm`; `tool` replaces the tritonserver of farm.toml (engine none only).

    `sources` maps each key to the source of its value; the script shows these sources.
    """
    server = farm.server
    spec = container_spec(farm, tool or Tool(triton=server.triton))
    engine = engine_of(farm)
    return FarmPlan(
        name=farm.name,
        site=farm.site,
        version=__version__,
        settings=settings_of(farm, sources),
        run_root=farm.run_root,
        python=python_folder(farm),
        nodes=farm.job.nodes,
        servers_per_node=server.servers_per_node,
        directives=(*_directives(farm), *engine.directives(spec)),
        extra_directives=farm.job.extra_directives,
        step_options=_step_options(farm),
        prologue=farm.job.prologue,
        epilogue=farm.job.epilogue,
        gpus_per_server=server.gpus_per_server,
        engine=server.engine,
        command=engine.argv(spec),
        key_file=str(FarmDir.of(farm).server_key),
        exports=engine.exports(spec),
        foreign=engine.foreign(),
        model_repository=server.model_repository,
        host_suffix=farm.cluster.host_suffix,
        base_port=server.base_port,
        ports_per_server=PORTS_PER_SERVER,
        drain=server.drain,
        exit_timeout=server.exit_timeout,
        max_restarts=server.max_restarts,
        give_up_after=server.give_up_after,
        max_pause=server.max_pause,
        container_stop=engine.removal(),
    )


def settings_of(farm: Farm, sources: Mapping[str, str] | None = None) -> tuple[Setting, ...]:
    """Return the values that `sources` does not mark as default, in the order of farm.toml.

    Without `sources`, return the values that differ from the defaults.
    """
    keys = tuple(known_keys())
    if sources is None:
        bare = Farm()
        sources = {key: "" for key in keys if value_of(farm, key) != value_of(bare, key)}
    chosen = [key for key in keys if sources.get(key, DEFAULT) != DEFAULT]
    return tuple(Setting(key=key, value=_as_toml(value_of(farm, key)), source=sources[key]) for key in chosen)


def _as_toml(value: object) -> str:
    """Return `value` as TOML: an inline table for a dict; JSON, which is valid TOML here, for other values."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_as_toml(item)}" for name, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def container_spec(farm: Farm, tool: Tool) -> ContainerSpec:
    """Return the container specification of the servers of `farm`."""
    server, python = farm.server, python_folder(farm)
    # Without this folder, the models use the packages of the image. podman cannot mount a missing folder.
    extra = tuple(folder for folder in (server.python_environment,) if folder and Path(folder).is_dir())
    return ContainerSpec(
        image=server.image,
        command=_triton_command(farm, tool),
        folders=(server.model_repository, python, *extra),
        mounts=tuple((source, target) for source, _, target in (mount.partition(":") for mount in server.mounts)),
        environment=tuple({**dict(tool.environment), "PYTHONPATH": python, **server.environment}.items()),
        modules=server.modules,
        shm_size=server.shm_size,
        gpus=server.device == "gpu",
    )


def container_places(farm: Farm) -> tuple[tuple[str, str], ...] | None:
    """Return pairs of a folder of this machine and its path in the servers' container; None without a container."""
    if not engine_of(farm).has_container:
        return None
    return container_spec(farm, Tool(triton=farm.server.triton)).places


def engine_faults(farm: Farm) -> tuple[str, ...]:
    """Return the settings of `farm` that its engine does not support, one line each with the next step."""
    return engine_of(farm).faults(container_spec(farm, Tool(triton=farm.server.triton)))


def python_folder(farm: Farm) -> str:
    """Return the folder with the models' Python code for the servers: a copy of `exatrkx_hpc.tracking`.

    It holds nothing else, so that PYTHONPATH never puts packages of this installation before those of the image.
    """
    return str(FarmDir.of(farm).python / __version__)


def _triton_command(farm: Farm, tool: Tool) -> tuple[Word, ...]:
    """Return the command of tritonserver; only the node knows the address, the ports and the server's ID."""
    return (
        tool.triton,
        ("--id=", Var("instance")),
        f"--model-repository={farm.server.model_repository}",
        ("--http-address=", Var("address")),
        ("--http-port=", Var("http_port")),
        ("--grpc-address=", Var("address")),
        ("--grpc-port=", Var("grpc_port")),
        ("--metrics-address=", Var("address")),
        ("--metrics-port=", Var("metrics_port")),
        f"--exit-timeout-secs={farm.server.exit_timeout}",
        # A killed server leaves shared memory behind; the script finds it by this prefix.
        ("--backend-config=python,shm-region-prefix-name=", Var("shm_prefix")),
        *restrictions(farm),
        *(("--allow-gpu-metrics=false",) if farm.server.device == "cpu" else ()),
        *tool.arguments,
        *farm.server.extra_arguments,
    )


def _directives(farm: Farm) -> tuple[tuple[str, str], ...]:
    """Return the #SBATCH options as pairs of name and value; an option without a value has an empty one."""
    job = farm.job
    pairs = (
        ("job-name", farm.name),
        ("account", job.account),
        ("qos", job.qos),
        ("partition", job.partition),
        ("constraint", job.constraint),
        ("reservation", job.reservation),
        ("nodes", str(job.nodes)),
        ("ntasks-per-node", str(farm.server.servers_per_node)),
        ("gpus-per-node", str(job.gpus_per_node or "")),
        ("cpus-per-task", str(job.cpus_per_task or "")),
        ("mem", job.memory),
        ("hint", job.hint),
        ("time", job.time),
        ("signal", job.signal),
        ("mail-type", job.mail_type),
        ("mail-user", job.mail_user),
        ("dependency", job.dependency),
        ("licenses", job.licenses),
        ("comment", job.comment),
        # Slurm does not create the folder of this file, and the run directory does not exist yet. %% means %.
        ("output", farm.run_root.replace("%", "%%") + "/job-%j.log"),
    )
    given = tuple((name, value) for name, value in pairs if value)
    # Always set one of the two: some sites requeue by default.
    # no-kill: a node that crashes must not end the other nodes.
    switches = ("requeue" if job.requeue else "no-requeue", "no-kill", *(("exclusive",) if job.exclusive else ()))
    return (*given, *((name, "") for name in switches))


def _step_options(farm: Farm) -> tuple[str, ...]:
    """Return the options of the srun that starts the servers.

    A dead server or node must not end the others. The step gets --cpus-per-task explicitly: since Slurm 22.05, a step
    does not inherit it, and in a shell's allocation there is nothing to inherit.
    """
    job, server = farm.job, farm.server
    size = (f"--nodes={job.nodes}", f"--ntasks-per-node={server.servers_per_node}")
    cpus = (f"--cpus-per-task={job.cpus_per_task}",) if job.cpus_per_task else ()
    hint = (f"--hint={job.hint}",) if job.hint else ()
    bind = (f"--gpu-bind={_binding(farm)}",) if job.gpu_bind and job.gpus_per_node else ()
    return (*size, "--kill-on-bad-exit=0", "--no-kill", *cpus, *hint, *bind)


def _binding(farm: Farm) -> str:
    """Return the value of srun's --gpu-bind.

    `closest` may bind two servers to one GPU. So `single:1` gives a server with one GPU the closest GPU that no other
    server has. With several GPUs per server, `none` shows all GPUs, and the servers divide them.
    """
    if farm.job.gpu_bind != "closest" or not farm.server.gpus_per_server:
        return farm.job.gpu_bind
    return "single:1" if farm.server.gpus_per_server == 1 else "none"
