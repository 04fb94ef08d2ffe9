"""The paths of all files of a farm and of each of its jobs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exatrkx_hpc.config.schema import Farm

#: Replaces a job ID: the last monitored job.
LATEST: Final = "latest"
_ID = re.compile(r"[1-9][0-9]*", re.ASCII)


@dataclass(frozen=True)
class FarmDir(os.PathLike[str]):
    """The run root of a farm: files that its jobs share, and a run directory for each job."""

    path: Path

    @classmethod
    def of(cls, farm: Farm) -> FarmDir:
        """Return the run root of `farm`."""
        return cls(Path(farm.run_root))

    def __fspath__(self) -> str:
        """Return the path, for functions such as open()."""
        return str(self.path)

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    @property
    def scripts(self) -> Path:
        """The folder of the submitted scripts."""
        return self.path / "scripts"

    @property
    def submissions(self) -> Path:
        """The folder of the submissions that have not finished, one JSON file each."""
        return self.path / "submissions"

    @property
    def python(self) -> Path:
        """The folder of the Python code that servers load, with a subfolder for each version."""
        return self.path / "python"

    @property
    def triton(self) -> Path:
        """The folder with the layout of the embedded Triton."""
        return self.path / "triton"

    @property
    def bench_models(self) -> Path:
        """The folder of the model repositories that scans create."""
        return self.path / "bench-models"

    @property
    def perf_analyzer(self) -> Path:
        """The folder of an installed perf_analyzer."""
        return self.path / "perf_analyzer"

    @property
    def secrets(self) -> Path:
        """The folder of the farm's secrets, mode 0700; launch/secrets.py makes what is in it."""
        return self.path / "secrets"

    @property
    def token(self) -> Path:
        """The token that clients show to the endpoint, mode 0600."""
        return self.secrets / "token"

    @property
    def server_key(self) -> Path:
        """The key that the balancer shows to the servers, mode 0600."""
        return self.secrets / "server-key"

    @property
    def certificate(self) -> Path:
        """The certificate of the farm's own authority, PEM: clients of an endpoint with TLS pin it."""
        return self.secrets / "certificate.pem"

    @property
    def certificate_key(self) -> Path:
        """The private key of the authority, PEM, mode 0600."""
        return self.secrets / "certificate.key"

    @property
    def latest(self) -> Path:
        """The link to the run directory of the last monitored job."""
        return self.path / LATEST

    def job(self, job: str) -> RunDir:
        """Return the run directory of a job, which need not exist; LATEST is the last monitored job."""
        return RunDir(self.path / job)

    def job_ids(self) -> tuple[str, ...]:
        """Return the IDs of the jobs with a run directory, highest last."""
        if not self.path.is_dir():
            return ()
        folders = (path for path in self.path.iterdir() if _ID.fullmatch(path.name))
        return tuple(sorted((path.name for path in folders if path.is_dir() and not path.is_symlink()), key=int))


@dataclass(frozen=True)
class RunDir(os.PathLike[str]):
    """The run directory of a job: its script, records, logs and configuration; the folder's name is the job's ID.

    jobs/farm.sbatch.j2 and jobs/server.sh.j2 write to the same paths.
    """

    path: Path

    def __fspath__(self) -> str:
        """Return the path, for functions such as open()."""
        return str(self.path)

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    @property
    def job(self) -> str:
        """The ID of the job."""
        return self.path.name

    @property
    def farm(self) -> FarmDir:
        """The run root of the job's farm."""
        return FarmDir(self.path.parent)

    @property
    def job_log(self) -> Path:
        """The log of the job's script; outside the run directory, because Slurm opens the log before that exists."""
        return self.path.parent / f"job-{self.job}.log"

    @property
    def plan(self) -> Path:
        """The plan of the job's script, JSON."""
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
        """The folder of the logs of the servers and of the command beside them."""
        return self.path / "logs"

    @property
    def stop(self) -> Path:
        """The stop request to the servers: `drain` or `halt`, then the origin of the request."""
        return self.path / "stop"

    @property
    def words(self) -> Path:
        """The folder of the words to single servers."""
        return self.path / "stop.d"

    def word(self, server: str) -> Path:
        """Return the file with a word to one server: `restart`, `drain` or `halt`; its script removes the file."""
        return self.words / server

    def has_ended(self, server: str) -> bool:
        """Return whether the script of a server has ended: it gave up, drained or stopped."""
        return (self.records / f"{server}.gave-up").exists() or (self.records / f"{server}.ended").exists()

    @property
    def reports(self) -> Path:
        """The folder of what clients report about the servers, one JSON file per client."""
        return self.path / "reports"

    @property
    def standings(self) -> Path:
        """What the job's monitor knows of the servers' answers, JSON: tried, ejected."""
        return self.path / "standings.json"

    @property
    def requests(self) -> Path:
        """The folder of stop requests that the job's script has prepared; one of them becomes `stop`."""
        return self.path / "requests"

    @property
    def beside_status(self) -> Path:
        """The exit status of the command beside the servers."""
        return self.path / "beside-status"

    @property
    def exit_status(self) -> Path:
        """The exit status of a script that is not a Slurm batch job: from the embedded scheduler or a terminal."""
        return self.path / "exit-status"

    @property
    def interactive(self) -> Path:
        """The marker of a farm that a terminal runs; it says where the allocation comes from."""
        return self.path / "interactive"

    @property
    def slurm_job(self) -> Path:
        """The record of a job submitted to Slurm by this program: cluster, name and script, JSON."""
        return self.path / "slurm-job.json"

    @property
    def embedded_job(self) -> Path:
        """The embedded scheduler's record of the job, JSON."""
        return self.path / "embedded-job.json"

    @property
    def session(self) -> Path:
        """The session of a job of the embedded scheduler and its start in clock ticks, as the job itself writes it."""
        return self.path / "session"

    @property
    def cancelled(self) -> Path:
        """The marker of a cancelled job of the embedded scheduler."""
        return self.path / "cancelled"

    @property
    def programs(self) -> Path:
        """The folder of programs that the embedded scheduler puts first on the script's PATH."""
        return self.path / "bin"

    @property
    def endpoint(self) -> Path:
        """The endpoint of the job, JSON; exists while a monitor maintains the endpoint."""
        return self.path / "endpoint.json"

    @property
    def last_endpoint(self) -> Path:
        """The endpoint that the job had last, JSON; a later one has its ports if they are free."""
        return self.path / "last-endpoint.json"

    @property
    def monitor_lock(self) -> Path:
        """The lock that the monitor of the job holds."""
        return self.path / "monitor.lock"

    @property
    def monitor_lease(self) -> Path:
        """The lease of the monitor, JSON; only where the file system knows no locks."""
        return self.path / "monitor.lease"

    @property
    def monitor_log(self) -> Path:
        """The output of a monitor that runs in the background, or beside the servers."""
        return self.path / "monitor.log"

    @property
    def prometheus(self) -> Path:
        """The folder of the job's Prometheus."""
        return self.path / "prometheus"

    @property
    def bench(self) -> Path:
        """The folder of a scan that the job itself ran."""
        return self.path / "bench"

    @property
    def job_records(self) -> tuple[Path, ...]:
        """The possible job records, of which a run directory has one; its `script` is the submitted script."""
        return (self.slurm_job, self.embedded_job)

    @property
    def marks(self) -> tuple[Path, ...]:
        """Files that identify a run directory: it has at least one; another folder with a numeric name has none."""
        return (self.server_script, self.plan, self.embedded_job)

    def balancer(self, kind: str) -> Path:
        """Return the folder of the job's balancer."""
        return self.path / kind

    def log_files(self, server: str | None = None) -> tuple[Path, ...]:
        """Return the existing logs: the job's log, then those in `logs`; or only the log of `server`."""
        servers = tuple(sorted(self.logs.glob("*.log")))
        if server is not None:
            return tuple(path for path in servers if path.stem == server)
        return (self.job_log, *servers) if self.job_log.exists() else servers
