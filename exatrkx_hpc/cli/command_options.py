"""The options of the commands that have many: `deploy`, `run-clients` and `bench`. options.py has those of all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from exatrkx_hpc.config.values import LabelFormat, Mode

# deploy
DeployNodes = Annotated[int | None, typer.Option("--nodes", "-N", help="Number of nodes (default: job.nodes).")]
DeployAccount = Annotated[
    str | None, typer.Option("--account", "-A", help="Slurm account to charge (default: job.account).")
]
DeployQos = Annotated[str | None, typer.Option("--qos", help="Slurm QOS (default: job.qos).")]
DeployPartition = Annotated[
    str | None, typer.Option("--partition", "-p", help="Slurm partition (default: job.partition).")
]
DeployTime = Annotated[
    str | None, typer.Option("--time", "-t", help="Time limit, such as 02:00:00 (default: job.time).")
]
DeployWait = Annotated[
    float | None,
    typer.Option("--wait", min=1, help="Wait until the servers are ready, at most N seconds after the job starts."),
]
DeployMinReady = Annotated[
    str | None,
    typer.Option("--min-ready", help="With --wait: number or share of servers, such as 90% (default: job.min_ready)."),
]
DeployInteractive = Annotated[
    bool, typer.Option("--interactive", help="Run the farm and its endpoint in this terminal until Ctrl-C.")
]
DeployDryRun = Annotated[bool, typer.Option("--dry-run", help="Print the job script; do not submit it.")]
DeployTrustRunRoot = Annotated[
    bool, typer.Option("--trust-run-root", help="Accept a run root that seems not to be shared with the nodes.")
]
DeployBeside = Annotated[
    Literal["bench", "monitor"] | None,
    typer.Option("--with", help="Run the benchmark inside the job, then end the job; or run the monitor there."),
]
DeployEvents = Annotated[Path, typer.Option("--events", "-d", help="With --with bench: events to send.")]

# run-clients
RunServer = Annotated[
    str | None, typer.Option("--server", "-s", help="Endpoint, HOST:PORT (default: that of the running farm).")
]
RunEvents = Annotated[Path, typer.Option("--events", "-d", help="Folder of events: *.csv, *.npy, *.npz or *.parquet.")]
RunEventColumn = Annotated[
    str, typer.Option("--event-column", help="Column of Parquet files with the event of each hit.")
]
RunLabels = Annotated[
    LabelFormat | None,
    typer.Option("--labels", help="csv (one label file per event) or parquet (default: clients.labels)."),
]
RunModel = Annotated[
    str | None, typer.Option("--model", help="Model name; it selects the workload, too (default: clients.model).")
]
RunWorkers = Annotated[
    int | None, typer.Option("--workers", "-n", help="Worker processes per node (default: clients.workers).")
]
RunInFlight = Annotated[
    int | None,
    typer.Option("--in-flight", "-j", help="Concurrent requests per worker (default: clients.in_flight)."),
]
RunOut = Annotated[Path, typer.Option("--out", "-o", help="Output folder.")]
RunMode = Annotated[
    Mode | None,
    typer.Option(
        "--mode",
        "-m",
        help="ensemble (one request), stages (one per stage), fused (one model) or direct (no server).",
    ),
]
RunModelRepository = Annotated[
    str | None,
    typer.Option("--model-repository", help="Model repository for mode direct (default: that of [server])."),
]
RunResume = Annotated[bool, typer.Option("--resume/--fresh", help="Resume from the ledger in --out, or start over.")]
RunRetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Retry the events in quarantine.")]
RunAcceptChanges = Annotated[bool, typer.Option("--accept-changes", help="Redo changed events and drop missing ones.")]
RunAcceptModelChange = Annotated[
    bool, typer.Option("--accept-model-change", help="Go on although the models have changed, and record it.")
]
RunExpect = Annotated[
    int | None, typer.Option("--expect", min=1, help="Number of events; refuse a folder that has another number.")
]
RunTimes = Annotated[
    bool, typer.Option("--times", help="With --mode stages: write times.csv with the seconds per stage.")
]
RunIgnoreFirst = Annotated[
    int, typer.Option("--ignore-first", "-i", help="Exclude the first N events of this run from the latency.")
]
RunWait = Annotated[
    float | None,
    typer.Option("--wait", help="Maximum seconds to wait until the endpoint is ready (default: clients.wait)."),
]
RunSrun = Annotated[bool, typer.Option("--srun", help="Spread the workers over the nodes of this shell's allocation.")]
RunSbatch = Annotated[bool, typer.Option("--sbatch", help="Submit a workers' job and print its ID.")]
RunNodes = Annotated[int | None, typer.Option("--nodes", "-N", min=1, help="Number of nodes (default: clients.nodes).")]
RunAccount = Annotated[
    str | None,
    typer.Option("--account", "-A", help="With --sbatch: Slurm account to charge (default: clients.account)."),
]
RunQos = Annotated[str | None, typer.Option("--qos", help="With --sbatch: Slurm QOS (default: clients.qos).")]
RunPartition = Annotated[
    str | None,
    typer.Option("--partition", "-p", help="With --sbatch: Slurm partition (default: clients.partition)."),
]
RunConstraint = Annotated[
    str | None,
    typer.Option("--constraint", "-C", help="With --sbatch: node features (default: that of [clients])."),
]
RunTimeLimit = Annotated[
    str | None, typer.Option("--time", "-t", help="With --sbatch: time limit (default: clients.time).")
]
RunDryRun = Annotated[bool, typer.Option("--dry-run", help="With --sbatch: print the job script; do not submit it.")]

# bench
BenchServers = Annotated[
    str | None,
    typer.Option("--servers", help="Numbers of servers to measure, such as 1,2 (default: those of the farm)."),
]
BenchInstances = Annotated[
    str | None,
    typer.Option("--instances", help="Instances per model to measure, such as 1,2,3 (default: server.instances)."),
]
BenchConcurrency = Annotated[
    str | None,
    typer.Option("--concurrency", help="Concurrencies to measure, such as 1,2,4,8 (default: bench.concurrency)."),
]
BenchEvents = Annotated[Path, typer.Option("--events", "-d", help="Folder of events, or perf_analyzer JSON file.")]
BenchOut = Annotated[Path, typer.Option("--out", "-o", help="Folder of the scan; an unfinished scan there is resumed.")]
BenchWindow = Annotated[float | None, typer.Option("--window", help="Seconds per repetition (default: bench.window).")]
BenchRepeats = Annotated[
    int | None, typer.Option("--repeats", help="Minimum repetitions per point (default: bench.repeats).")
]
BenchMostRepeats = Annotated[
    int | None, typer.Option("--most-repeats", help="Maximum repetitions per point (default: bench.most_repeats).")
]
BenchVariation = Annotated[
    float | None,
    typer.Option(
        "--variation",
        help="Stop repeating below this relative standard deviation, 0 to 1 (default: bench.variation).",
    ),
]
BenchMinutes = Annotated[
    float | None, typer.Option("--minutes", help="Start no repetition after N minutes (default: bench.minutes).")
]
BenchModel = Annotated[str | None, typer.Option("--model", help="Model to measure (default: bench.model).")]
BenchCalls = Annotated[
    Literal["default", "sync", "async"] | None,
    typer.Option("--calls", help="perf_analyzer's request mode (default: bench.calls)."),
]
BenchDirect = Annotated[
    bool | None,
    typer.Option(
        "--direct/--no-direct",
        help="Also measure mode direct, without a server (default: only at a site without Slurm).",
    ),
]
BenchJob = Annotated[
    str | None,
    typer.Option("--job", help="Measure the servers of this running job, without changing their number."),
]
BenchWait = Annotated[float, typer.Option("--wait", min=1, help="Maximum seconds to wait until the servers are ready.")]
BenchPlots = Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the figures after the scan.")]
BenchRecommended = Annotated[
    bool, typer.Option("--recommend", help="Only print the recommended farm from an existing scan.")
]
BenchDryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan of the scan and its estimated time; do not measure.")
]
