"""The paths of all files of a farm and of each of its jobs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exatrkx_hpc.config.schema import Farm

#: Names the job that was watched last, in the place of an id.
LATEST: Final = "latest"
_ID = re.compile(r"[1-9][0-9]*", re.ASCII)


@dataclass(frozen=True)
class FarmDir(os.PathLike[str]):
    """The folder of a farm, its run root: what its jobs share, and a run directory for each job."""

    path: Path

    @classmethod
    def of(cls, farm: Farm) -> FarmDir:
        """Return the folder of `farm`."""
        return cls(Path(farm.run_root))

    def __fspath__(self) -> str:
        """Return the folder as open() takes it."""
        return str(self.path)

    def __str__(self) -> str:
        """Return the folder as people read it."""
        return str(self.path)

    @property
    def scripts(self) -> Path:
        """The folder of the scripts that were submitted."""
        return self.path / "scripts"

    @property
    def python(self) -> Path:
        """The folder of the Python code that servers load, a folder for each version."""
        return self.path / "python"

    @property
    def triton(self) -> Path:
        """The folder of the parts of the embedded Triton."""
        return self.path / "triton"

    @property
    def bench_models(self) -> Path:
        """The folder of the model repositories that scans made."""
        return self.path / "bench-models"

    @property
    def perf_analyzer(self) -> Path:
        """The folder of an installed perf_analyzer."""
        return self.path / "perf_analyzer"

    @property
    def latest(self) -> Path:
        """The link to the run directory of the job that was watched last."""
        return self.path / LATEST

    def job(self, job: str) -> RunDir:
        """Return the run directory of a job, whether or not it is there; LATEST is the job watched last."""
        return RunDir(self.path / job)

    def job_ids(self) -> tuple[str, ...]:
        """Return the ids of the jobs that have a run directory, the newest id last."""
        if not self.path.is_dir():
            return ()
        folders = (path for path in self.path.iterdir() if _ID.fullmatch(path.name))
        return tuple(sorted((path.name for path in folders if path.is_dir() and not path.is_symlink()), key=int))


@dataclass(frozen=True)
class RunDir(os.PathLike[str]):
    """The run directory of a job: its script, records, logs and configuration; the folder is named by the job's id.

    jobs/farm.sbatch.j2 and jobs/server.sh.j2 write to the same places.
    """

    path: Path

    def __fspath__(self) -> str:
        """Return the folder as open() takes it."""
        return str(self.path)

    def __str__(self) -> str:
        """Return the folder as people read it."""
        return str(self.path)

    @property
    def job(self) -> str:
        """The id of the job."""
        return self.path.name

    @property
    def farm(self) -> FarmDir:
        """The folder of the job's farm."""
        return FarmDir(self.path.parent)

    @property
    def job_log(self) -> Path:
        """The log of the job's script; it is beside the run directory, because Slurm opens it before there is one."""
        return self.path.parent / f"job-{self.job}.log"

    @property
    def plan(self) -> Path:
        """The plan that the job's script was made from, JSON."""
        return self.path / "plan.json"

    @property
    def server_script(self) -> Path:
        """The script that each server of the job runs."""
        return self.path / "server.sh"

    @property
    def records(self) -> Path:
        """The folder of the servers' records, one JSON file each."""
        return self.path / "records"

    @property
    def logs(self) -> Path:
        """The folder of the servers' logs, and of what runs beside them."""
        return self.path / "logs"

    @property
    def stop(self) -> Path:
        """The file that asks the servers to end: `drain` or `halt`, then who asks."""
        return self.path / "stop"

    @property
    def beside_status(self) -> Path:
        """The exit status of the program that ran beside the servers."""
        return self.path / "beside-status"

    @property
    def exit_status(self) -> Path:
        """The exit status of a script that no Slurm keeps: of the embedded scheduler, or of a terminal."""
        return self.path / "exit-status"

    @property
    def interactive(self) -> Path:
        """The mark of a farm that a terminal runs: whose the allocation is."""
        return self.path / "interactive"

    @property
    def slurm_job(self) -> Path:
        """What Slurm knows the job by, where it was submitted from here, JSON."""
        return self.path / "slurm-job.json"

    @property
    def embedded_job(self) -> Path:
        """What the embedded scheduler keeps of the job, JSON."""
        return self.path / "embedded-job.json"

    @property
    def cancelled(self) -> Path:
        """The mark of a job of the embedded scheduler that was cancelled."""
        return self.path / "cancelled"

    @property
    def programs(self) -> Path:
        """The folder of the programs that the embedded scheduler puts on the script's PATH."""
        return self.path / "bin"

    @property
    def endpoint(self) -> Path:
        """Where the endpoint of the job is, JSON; here while a monitor keeps it."""
        return self.path / "endpoint.json"

    @property
    def monitor_lock(self) -> Path:
        """The lock that the monitor of the job holds."""
        return self.path / "monitor.lock"

    @property
    def prometheus(self) -> Path:
        """The folder of the job's Prometheus."""
        return self.path / "prometheus"

    @property
    def bench(self) -> Path:
        """The folder of a scan that the job made of itself."""
        return self.path / "bench"

    @property
    def job_records(self) -> tuple[Path, ...]:
        """Files of which a run directory has one: it notes, among others, as which `script` the job was submitted."""
        return (self.slurm_job, self.embedded_job)

    @property
    def marks(self) -> tuple[Path, ...]:
        """Files of which a run directory has at least one, and another folder that a number names has none."""
        return (self.server_script, self.plan, self.embedded_job)

    def balancer(self, kind: str) -> Path:
        """Return the folder of the job's balancer."""
        return self.path / kind

    def log_files(self, server: str | None = None) -> tuple[Path, ...]:
        """Return the logs that are there: the job's own, then each server's; or the log of one server."""
        servers = tuple(sorted(self.logs.glob("*.log")))
        if server is not None:
            return tuple(path for path in servers if path.stem == server)
        return (self.job_log, *servers) if self.job_log.exists() else servers
