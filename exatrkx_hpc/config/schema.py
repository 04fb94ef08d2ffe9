"""What a farm is: the values of farm.toml, checked, frozen, and each with the place it came from.

A value is looked for in the flags, then in the environment (`EXATRKX_HPC_JOB_NODES` sets `job.nodes`), then
in farm.toml, then in the site's profile; anything unset keeps the default given here.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from exatrkx_hpc.config.values import (
    Engine,
    Folder,
    Host,
    LabelFormat,
    Line,
    Memory,
    Mode,
    Mount,
    Name,
    Options,
    Seconds,
    SignalSpec,
    TimeLimit,
    UserPort,
    Variable,
)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must not be true or false")
        return value


class Cluster(_Section):
    """The facts of one cluster, which a site's profile knows."""

    scheduler: Literal["slurm", "local"] = Field("slurm", description="Slurm, or this machine alone")
    host_suffix: Host = Field("", description="appended to a node's name to find its address")
    local_address: Line = Field(
        "127.0.0.2", description="local: the first pretend node's address; the others follow it"
    )

    cores_per_gpu: int = Field(0, ge=0, le=1024, description="CPUs that a job gets with each GPU; 0: Slurm decides")
    gpu_account_suffix: Line = Field("", description="what GPU hours' accounts end with, and those of CPU hours do not")

    @field_validator("local_address")
    @classmethod
    def _loopback(cls, value: str) -> str:
        try:
            ours = IPv4Address(value).is_loopback
        except AddressValueError:
            ours = False
        if not ours:
            raise ValueError("must be an address of this machine, 127.x.y.z")
        return value


class JobSection(_Section):
    """What the job asks of Slurm; an empty value is left out of the script."""

    account: Line = Field("", description="the account to charge")
    qos: Line = Field("", description="the quality of service")
    partition: Line = Field("", description="the partition")
    constraint: Line = Field("", description="the node features asked for")
    nodes: int = Field(1, ge=1, le=10000, description="how many nodes")
    time: TimeLimit = Field("00:30:00", description="the time limit")
    gpus_per_node: int = Field(0, ge=0, le=64, description="GPUs of each node; 0 asks for none")
    reservation: Line = Field("", description="a reservation to run in")
    cpus_per_task: int = Field(0, ge=0, le=1024, description="CPUs of each server; 0: as cluster.cores_per_gpu says")
    memory: Memory = Field("", description="memory of each node, such as 64G; 0 is all of it")
    exclusive: bool = Field(False, description="share the nodes with no other job")
    hint: Literal["", "compute_bound", "memory_bound", "multithread", "nomultithread"] = Field(
        "", description="how Slurm places the servers on the cores"
    )
    gpu_bind: Line = Field("", description="how Slurm binds servers to GPUs, such as none or closest")
    signal: SignalSpec = Field("B:TERM@60", description="signal before the time limit; the servers then drain")
    requeue: bool = Field(False, description="run the job again after the failure of a node")
    mail_type: Line = Field("", description="when to send mail, such as END,FAIL")
    mail_user: Line = Field("", description="whom to send mail")
    dependency: Line = Field("", description="jobs to wait for, such as afterany:42")
    licenses: Line = Field("", description="licenses, such as scratch")
    comment: Line = Field("", description="a comment that the accounting keeps")
    extra_directives: Options = Field((), description="further #SBATCH options, each one word")

    prologue: tuple[Line, ...] = Field((), description="lines of bash before the servers, such as module load")
    epilogue: tuple[Line, ...] = Field((), description="lines of bash after the servers")


class ServerSection(_Section):
    """How one Triton server is started."""

    engine: Engine = Field("none", description="what starts the container; none: a bare binary")
    image: Line = Field("", description="the container's image")
    triton: Line = Field("tritonserver", description="the tritonserver program, inside the image if there is one")
    model_repository: Folder = Field("", description="folder of the models; empty: RUN_ROOT/model_repository")
    python_environment: Folder = Field(
        "", description="the models' Python packages, which setup fetches for the image; empty: the image's own"
    )
    device: Literal["cpu", "gpu"] = Field("gpu", description="what the models run on")
    instances: int = Field(1, ge=1, le=64, description="instances of each model in a server")
    servers_per_node: int = Field(1, ge=1, le=16, description="servers on each node")
    gpus_per_server: int = Field(0, ge=0, le=64, description="GPUs of each server; 0: all that the node has")
    base_port: int = Field(8000, ge=1024, le=65000, description="HTTP port; gRPC and metrics ports follow it")
    shm_size: Line = Field("20g", description="shared memory of the container, where the engine has a say")
    modules: tuple[Line, ...] = Field((), description="site modules of the engine, such as gpu")
    mounts: tuple[Mount, ...] = Field((), description="further folders of a container, FOLDER or FOLDER:PLACE_IN_IT")
    environment: dict[Variable, Line] = Field({}, description="variables set for the server")
    extra_arguments: tuple[Line, ...] = Field((), description="further arguments of tritonserver")
    drain: int = Field(5, ge=0, le=3600, description="seconds between leaving the balancer and the end of the server")
    exit_timeout: int = Field(20, ge=1, le=3600, description="seconds that running requests have to finish at the end")
    max_restarts: int = Field(5, ge=0, le=1000, description="how often a server that dies is started again")

    @model_validator(mode="after")
    def _image_or_none(self) -> ServerSection:
        if self.engine != "none" and not self.image:
            raise ValueError(f"image: engine {self.engine!r} needs one, such as 'docker.io/NAME:TAG'")
        return self


class BalancerSection(_Section):
    """The endpoint that clients use."""

    host: Host = Field("127.0.0.1", min_length=1, description="the address that nginx listens on")
    grpc_port: UserPort = Field(9191, description="gRPC port of the endpoint; 0: any free one; user: one of your own")
    http_port: UserPort = Field(9190, description="HTTP port of the endpoint; 0: any free one; user: one of your own")
    worker_processes: int = Field(1, ge=1, le=128, description="nginx worker processes")


class MonitorSection(_Section):
    """How the monitor watches the servers."""

    interval: Seconds = Field(1, description="seconds between two looks at the servers")
    probe_timeout: Seconds = Field(1, description="seconds that a server has to answer a probe")
    tolerance: int = Field(2, ge=1, le=100, description="missed probes in a row that take a server out")
    prometheus: bool = Field(True, description="run Prometheus beside the balancer, where there is one")
    prometheus_port: UserPort = Field(9090, description="Prometheus' port; 0: any free one; user: one of your own")
    scrape_interval: int = Field(5, ge=1, le=3600, description="seconds between two scrapes")


class ClientsSection(_Section):
    """How events are pushed through the endpoint."""

    workload: Name = Field("exatrkx", description="the kind of events: exatrkx, or another that 'workload list' shows")
    workloads: Folder = Field("", description="folder of workloads of your own, one NAME.py each; empty: none")
    model: Line = Field("", description="the model that is asked; empty: the workload's own")
    mode: Mode = Field("ensemble", description="ensemble, stages, fused, or direct: without any server")
    workers: int = Field(8, ge=1, le=4096, description="worker processes, on each node")
    in_flight: int = Field(4, ge=1, le=4096, description="requests that each worker keeps in flight")
    labels: LabelFormat = Field("csv", description="csv: a label file for each event; parquet: files of many")
    wait: Seconds = Field(60, description="seconds to wait for the endpoint to be ready at the start")
    patience: Seconds = Field(120, description="seconds that an event is tried again before it fails")
    request_timeout: Seconds = Field(60, description="seconds that one request may take")
    nodes: int = Field(1, ge=1, le=10000, description="nodes of the workers' own job (--sbatch)")
    time: TimeLimit = Field("00:30:00", description="its time limit")
    account: Line = Field("", description="the account it is charged to; empty: job.account")
    qos: Line = Field("", description="its quality of service; empty: job.qos")
    partition: Line = Field("", description="its partition; empty: job.partition")
    constraint: Line = Field("", description="the features of its nodes, such as cpu")
    extra_directives: Options = Field((), description="further #SBATCH options of it, each one word")


class BenchSection(_Section):
    """How a farm is measured with perf_analyzer."""

    model: Line = Field("exatrkx", description="the model that is asked")
    concurrency: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (1, 2, 4, 8), min_length=1, description="numbers of requests in flight, each a point"
    )
    calls: Literal["default", "sync", "async"] = Field(
        "default", description="how perf_analyzer calls: default is its own choice"
    )
    window: Seconds = Field(5, description="seconds that a repetition measures")
    repeats: int = Field(3, ge=1, le=1000, description="repetitions of each point")
    most_repeats: int = Field(6, ge=1, le=1000, description="repetitions of a point that is not steady")
    variation: float = Field(0.05, ge=0, le=10, description="steady below this standard deviation over mean")
    minutes: float = Field(60, gt=0, le=100000, description="no repetition begins after so many minutes")
    perf_analyzer: tuple[Line, ...] = Field(
        (), description="the words of a command that starts perf_analyzer; empty: the one that is found"
    )


class Farm(_Section):
    """A named set of Triton servers behind one endpoint."""

    name: Name = Field("exatrkx", description="the farm's and its jobs' name")
    site: Name = Field("generic", description="the site profile: perlmutter, generic or local")
    run_root: Folder = Field(
        "~/exatrkx-hpc", min_length=1, description="folder of the run directories, shared with the nodes"
    )
    cluster: Cluster = Cluster()
    job: JobSection = JobSection()
    server: ServerSection = ServerSection()
    balancer: BalancerSection = BalancerSection()
    monitor: MonitorSection = MonitorSection()
    clients: ClientsSection = ClientsSection()
    bench: BenchSection = BenchSection()

    @model_validator(mode="before")
    @classmethod
    def _models_beside_runs(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Put the models into the run root when nobody said where they are."""
        run_root = data.get("run_root", cls.model_fields["run_root"].default)
        server = dict(data.get("server", {}))
        if isinstance(run_root, str) and server.get("model_repository", "") == "":
            server["model_repository"] = f"{run_root}/model_repository"
        return {**data, "server": server}

    @model_validator(mode="before")
    @classmethod
    def _workers_charged_as_servers(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Let the workers' own job go where the servers' goes when nobody said otherwise.

        Workers that ask for no GPU nodes are charged in CPU hours.
        """
        job, clients = dict(data.get("job", {})), dict(data.get("clients", {}))
        suffix = data.get("cluster", {}).get("gpu_account_suffix", "")
        if isinstance(job.get("account"), str) and suffix and "gpu" not in str(clients.get("constraint", "")):
            job["account"] = job["account"].removesuffix(suffix)
        for name in ("account", "qos", "partition"):
            if clients.get(name, "") == "" and name in job:
                clients[name] = job[name]
        return {**data, "clients": clients}

    @model_validator(mode="after")
    def _cpus_of_the_gpus(self) -> Farm:
        """Give each server its share of the CPUs that come with the node's GPUs when nobody said otherwise."""
        if self.job.cpus_per_task or not self.cluster.cores_per_gpu or not self.job.gpus_per_node:
            return self
        share = self.cluster.cores_per_gpu * self.job.gpus_per_node // self.server.servers_per_node
        return self.model_copy(update={"job": self.job.model_copy(update={"cpus_per_task": max(1, share)})})

    @model_validator(mode="after")
    def _folders_can_be_written_down(self) -> Farm:
        if self.cluster.scheduler == "slurm" and "\\" in self.run_root:
            raise ValueError("run_root: must not contain a backslash; Slurm drops it from the path of the job's log")
        wanted = self.server.servers_per_node * self.server.gpus_per_server
        if wanted > self.job.gpus_per_node:
            raise ValueError(
                f"server.gpus_per_server: {self.server.servers_per_node} servers with {self.server.gpus_per_server} "
                f"GPUs each need {wanted}, but job.gpus_per_node is {self.job.gpus_per_node}"
            )
        if self.server.engine == "apptainer" and "," in self.run_root + self.server.model_repository:
            raise ValueError("run_root and server.model_repository: apptainer cannot mount a folder with a comma")
        return self
