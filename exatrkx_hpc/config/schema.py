"""The schema of farm.toml: the values of a farm, validated and frozen.

The first source that sets a value wins: flags, environment (`EXATRKX_HPC_JOB_NODES` sets `job.nodes`), farm.toml,
profile of the site (see config/resolve.py). Anything unset keeps the default given here.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from exatrkx_hpc.config.directives import refusal
from exatrkx_hpc.config.values import (
    Engine,
    Folder,
    Host,
    LabelFormat,
    Line,
    Memory,
    MinReady,
    Mode,
    Mount,
    Name,
    Options,
    Processes,
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


def _accepted(words: tuple[str, ...], section: str) -> tuple[str, ...]:
    """Return the options of `extra_directives`; raises ValueError for one that would break the job."""
    for word in words:
        if why := refusal(word, section):
            raise ValueError(why)
    return words


class Cluster(_Section):
    """The properties of a cluster, set by the profile of the site."""

    scheduler: Literal["slurm", "local"] = Field("slurm", description="slurm, or local: this machine only")
    host_suffix: Host = Field("", description="suffix of a node's name that gives its address")
    local_address: Line = Field(
        "127.0.0.2", description="local: address of the first simulated node; the other nodes follow"
    )

    cores_per_gpu: int = Field(0, ge=0, le=1024, description="CPUs per GPU; 0: Slurm decides")
    gpu_account_suffix: Line = Field("", description="suffix of accounts for GPU hours")

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
    """The job's Slurm options; empty values are omitted from the script."""

    account: Line = Field("", description="Slurm account to charge")
    qos: Line = Field("", description="Slurm QOS")
    partition: Line = Field("", description="Slurm partition")
    constraint: Line = Field("", description="required node features")
    nodes: int = Field(1, ge=1, le=10000, description="number of nodes")
    time: TimeLimit = Field("00:30:00", description="time limit")
    gpus_per_node: int = Field(0, ge=0, le=64, description="GPUs per node; 0: none")
    reservation: Line = Field("", description="Slurm reservation")
    cpus_per_task: int = Field(0, ge=0, le=1024, description="CPUs per server; 0: from cluster.cores_per_gpu")
    memory: Memory = Field("", description="memory per node, such as 64G; 0: all")
    exclusive: bool = Field(False, description="do not share the nodes with other jobs")
    hint: Literal["", "compute_bound", "memory_bound", "multithread", "nomultithread"] = Field(
        "", description="how Slurm places the servers on the cores"
    )
    gpu_bind: Line = Field("", description="how Slurm binds servers to GPUs, such as none or closest")
    signal: SignalSpec = Field("B:TERM@60", description="signal before the time limit, on which the servers drain")
    min_ready: MinReady = Field(
        "100%", description="servers that must be ready before work begins: a number, or a share such as 90%"
    )
    requeue: bool = Field(False, description="requeue the job after a node failure")
    mail_type: Line = Field("", description="when to send mail, such as END,FAIL")
    mail_user: Line = Field("", description="mail address")
    dependency: Line = Field("", description="jobs to wait for, such as afterany:42")
    licenses: Line = Field("", description="licenses, such as scratch")
    comment: Line = Field("", description="comment for the accounting")
    extra_directives: Options = Field((), description="additional #SBATCH options, one word each")

    @field_validator("extra_directives")
    @classmethod
    def _options_of_a_farm(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return _accepted(words, "job")

    prologue: tuple[Line, ...] = Field((), description="bash lines to run before the servers, such as module load")
    epilogue: tuple[Line, ...] = Field((), description="bash lines to run after the servers")


class ServerSection(_Section):
    """How one Triton server is started."""

    engine: Engine = Field("none", description="container engine; none: run without a container")
    image: Line = Field("", description="container image")
    triton: Line = Field("tritonserver", description="tritonserver program, inside the image if an image is set")
    model_repository: Folder = Field("", description="model repository; empty: RUN_ROOT/model_repository")
    python_environment: Folder = Field(
        "", description="Python environment of the models, fetched by setup for the image; empty: that of the image"
    )
    device: Literal["cpu", "gpu"] = Field("gpu", description="device of the models")
    instances: int = Field(1, ge=1, le=64, description="instances of each model per server")
    servers_per_node: int = Field(1, ge=1, le=16, description="servers per node")
    gpus_per_server: int = Field(0, ge=0, le=64, description="GPUs per server; 0: all of the node")
    base_port: int = Field(
        8000, ge=1024, le=65000, description="first HTTP port; gRPC and metrics follow; if taken, the next free three"
    )
    shm_size: Line = Field("20g", description="shared memory of the container, if the engine supports it")
    modules: tuple[Line, ...] = Field((), description="site modules of the engine, such as gpu")
    mounts: tuple[Mount, ...] = Field((), description="additional mounts, FOLDER or FOLDER:PATH_IN_CONTAINER")
    environment: dict[Variable, Line] = Field({}, description="environment variables of the server")
    extra_arguments: tuple[Line, ...] = Field((), description="additional arguments of tritonserver")
    drain: int = Field(5, ge=0, le=3600, description="seconds between leaving the balancer and stopping the server")
    exit_timeout: int = Field(
        20, ge=1, le=3600, description="seconds for running requests to finish when the server stops"
    )
    max_restarts: int = Field(
        5, ge=0, le=1000, description="restarts in a row of a server that dies before it is ready; 0: no restart at all"
    )
    give_up_after: int = Field(
        600, ge=0, le=86400, description="seconds for which restarts go on at least, until the server is ready"
    )
    max_pause: int = Field(300, ge=1, le=3600, description="longest pause between two starts, in seconds")

    @model_validator(mode="after")
    def _image_or_none(self) -> ServerSection:
        if self.engine != "none" and not self.image:
            raise ValueError(f"image: engine {self.engine!r} needs one, such as 'docker.io/NAME:TAG'")
        return self


class BalancerSection(_Section):
    """The endpoint that clients use."""

    host: Host = Field(
        "127.0.0.1", min_length=1, description="address that nginx listens on; internal: this machine's own address"
    )
    grpc_port: UserPort = Field(
        9191, description="gRPC port of the endpoint; 0: any free port; user: derived from your user ID"
    )
    http_port: UserPort = Field(
        9190, description="HTTP port of the endpoint; 0: any free port; user: derived from your user ID"
    )
    worker_processes: Processes = Field(
        "auto", description="nginx worker processes; auto: the CPUs of this process, 16 at most"
    )
    advertise: Host = Field("", description="address that clients are told; empty: that of balancer.host")
    access: Literal["token", "open"] = Field(
        "token", description="token: only clients with the farm's token; open: everyone who reaches the ports"
    )
    tls: Literal["off", "auto", "given"] = Field(
        "off", description="off: clear text; auto: a certificate made for the farm; given: balancer.certificate"
    )
    certificate: Folder = Field("", description="with tls = given: certificate of the endpoint, a PEM file")
    certificate_key: Folder = Field("", description="with tls = given: private key of the certificate, a PEM file")
    client_requests: int = Field(
        4096, ge=0, le=1000000, description="maximum concurrent requests of one client address; 0: no limit"
    )
    client_rate: int = Field(
        10000, ge=0, le=1000000, description="maximum requests per second of one client address; 0: no limit"
    )

    @model_validator(mode="after")
    def _certificate_or_none(self) -> BalancerSection:
        if (self.tls == "given") != bool(self.certificate and self.certificate_key):
            raise ValueError('tls: "given" needs certificate and certificate_key, and only "given" uses them')
        return self


class MonitorSection(_Section):
    """How the monitor watches the servers."""

    interval: Seconds = Field(1, description="seconds between two checks of the servers")
    probe_timeout: Seconds = Field(1, description="timeout of a probe, in seconds")
    tolerance: int = Field(2, ge=1, le=100, description="consecutive failed probes after which a server is ejected")
    trial: bool = Field(True, description="send one inference to each server before its first request from a client")
    trial_timeout: Seconds = Field(60, description="timeout of such an inference, in seconds")
    eject: bool = Field(True, description="eject servers that fail or stall far more than the others")
    sample_interval: Seconds = Field(5, description="seconds between two readings of the servers' counters")
    window: Seconds = Field(30, description="seconds over which the servers are compared")
    min_requests: int = Field(10, ge=1, le=10000, description="requests of a server from which its failures count")
    failure_share: float = Field(
        0.3, gt=0, le=1, description="share of failed requests above that of the others for which a server is ejected"
    )
    slow_factor: float = Field(
        10, ge=0, le=10000, description="times the latency of the others for which a server is ejected; 0: never"
    )
    stall: float = Field(
        60, ge=0, le=86400, description="seconds without an end of waiting requests for which it is ejected; 0: never"
    )
    eject_time: Seconds = Field(30, description="seconds of the first ejection; the n-th lasts n times as long")
    eject_time_max: float = Field(600, gt=0, le=86400, description="longest ejection, in seconds")
    sick_after: float = Field(
        600, ge=0, le=86400, description="seconds after which an ejected or silent server is restarted; 0: never"
    )
    start_within: float = Field(
        1800, ge=0, le=86400, description="seconds after which a server that is not ready is restarted; 0: never"
    )
    prometheus: bool = Field(True, description="run Prometheus next to the balancer, if installed")
    prometheus_port: UserPort = Field(
        9090, description="port of Prometheus; 0: any free port; user: derived from your user ID"
    )
    prometheus_host: Host = Field(
        "127.0.0.1", min_length=1, description="address that Prometheus listens on; it has no password"
    )
    scrape_interval: int = Field(5, ge=1, le=3600, description="seconds between two scrapes")


class ClientsSection(_Section):
    """How clients send events to the endpoint."""

    workload: Name = Field("exatrkx", description="workload: exatrkx, or another of 'workload list'")
    workloads: Folder = Field("", description="folder of your own workloads, one NAME.py each; empty: none")
    model: Line = Field("", description="model name; empty: that of the workload")
    mode: Mode = Field("ensemble", description="ensemble, stages, fused, or direct (no server)")
    workers: int = Field(8, ge=1, le=4096, description="worker processes per node")
    in_flight: int = Field(4, ge=1, le=4096, description="concurrent requests per worker")
    labels: LabelFormat = Field("csv", description="csv: one label file per event; parquet: many events per file")
    wait: Seconds = Field(60, description="maximum seconds to wait until the endpoint is ready")
    patience: Seconds = Field(600, description="seconds to retry a request that no server takes")
    request_timeout: Seconds = Field(60, description="timeout of one request, in seconds")
    nodes: int = Field(1, ge=1, le=10000, description="nodes of the workers' job (--sbatch)")
    time: TimeLimit = Field("00:30:00", description="time limit of the workers' job")
    account: Line = Field("", description="account of the workers' job; empty: job.account")
    qos: Line = Field("", description="QOS of the workers' job; empty: job.qos")
    partition: Line = Field("", description="partition of the workers' job; empty: job.partition")
    constraint: Line = Field("", description="node features of the workers' job, such as cpu")
    extra_directives: Options = Field((), description="additional #SBATCH options of the workers' job, one word each")

    @field_validator("extra_directives")
    @classmethod
    def _options_of_workers(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return _accepted(words, "clients")


class BenchSection(_Section):
    """How a farm is measured with perf_analyzer."""

    model: Line = Field("exatrkx", description="model to measure")
    concurrency: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (1, 2, 4, 8), min_length=1, description="concurrencies to measure, one point each"
    )
    calls: Literal["default", "sync", "async"] = Field(
        "default", description="request mode of perf_analyzer; default: its own choice"
    )
    window: Seconds = Field(5, description="seconds per repetition")
    repeats: int = Field(3, ge=1, le=1000, description="minimum repetitions per point")
    most_repeats: int = Field(6, ge=1, le=1000, description="maximum repetitions per point, if it is not stable")
    variation: float = Field(0.05, ge=0, le=10, description="relative standard deviation below which a point is stable")
    minutes: float = Field(60, gt=0, le=100000, description="minutes after which no repetition starts")
    perf_analyzer: tuple[Line, ...] = Field(
        (), description="command of perf_analyzer, as a list of words; empty: the one found"
    )


class Farm(_Section):
    """A named set of Triton servers behind one endpoint."""

    name: Name = Field("exatrkx", description="name of the farm and its jobs")
    site: Name = Field("generic", description="site profile: perlmutter, generic or local")
    run_root: Folder = Field(
        "~/exatrkx-hpc",
        min_length=1,
        description="directory of the run directories, on a file system shared with the nodes",
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
        """Default the model repository to a folder of the run root."""
        run_root = data.get("run_root", cls.model_fields["run_root"].default)
        server = dict(data.get("server", {}))
        if isinstance(run_root, str) and server.get("model_repository", "") == "":
            server["model_repository"] = f"{run_root}/model_repository"
        return {**data, "server": server}

    @model_validator(mode="before")
    @classmethod
    def _workers_charged_as_servers(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Default account, QOS and partition of the workers' job to those of the servers' job.

        Drop the suffix for GPU hours of that account, unless the workers' constraint names GPU nodes.
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
        """Default the CPUs of a server to its share of the CPUs that come with the node's GPUs."""
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
