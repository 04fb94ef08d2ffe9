"""News of the steps before a job is submitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.news import Level, News
from exatrkx_hpc.base.readable import duration, moment


@dataclass(frozen=True, kw_only=True)
class ModelsBuilding(News):
    """A model repository is being built for servers on `device`, with `instances` instances of each model.

    `fused` is true if the repository contains the fused model.
    """

    code: ClassVar[str] = "models-building"
    repository: str
    device: str
    instances: int = 1
    fused: bool = True

    def __str__(self) -> str:
        """Return the repository, the device and the options."""
        several = f", {self.instances} instances of each" if self.instances > 1 else ""
        without = "" if self.fused else ", without exatrkx_fused"
        return f"models: building {self.repository} for {self.device}{several}{without}"


@dataclass(frozen=True, kw_only=True)
class ImagePulling(News):
    """The engine's `command` is pulling an image."""

    code: ClassVar[str] = "image-pulling"
    command: str

    def __str__(self) -> str:
        """Return the command."""
        return f"image: {self.command}"


@dataclass(frozen=True, kw_only=True)
class ImageFound(News):
    """The image of the servers was found; `image` is its name for the engine."""

    code: ClassVar[str] = "image-found"
    image: str

    def __str__(self) -> str:
        """Return the image."""
        return f"image: {self.image}"


@dataclass(frozen=True, kw_only=True)
class PackagesFetching(News):
    """The packages that models import are being fetched for Python version `python` to the folder `environment`."""

    code: ClassVar[str] = "packages-fetching"
    packages: tuple[str, ...]
    python: str
    environment: str

    def __str__(self) -> str:
        """Return the packages and the target folder."""
        return f"packages: fetching {', '.join(self.packages)} for Python {self.python} to {self.environment}"


@dataclass(frozen=True, kw_only=True)
class ModelsWithoutPackages(News):
    """Models of an existing repository do not use the packages in `environment`."""

    code: ClassVar[str] = "models-without-packages"
    #: Imports of these models may fail.
    usual: ClassVar[Level] = Level.WARNING
    models: tuple[str, ...]
    repository: str
    environment: str

    def __str__(self) -> str:
        """Return the models, and the command that builds a repository with the packages."""
        return (
            f"models: {', '.join(self.models)} of {self.repository} use the image's own Python, without the packages "
            f"of {self.environment}; 'exatrkx-hpc models build --environment {self.environment}' builds a repository "
            "that uses them"
        )


@dataclass(frozen=True, kw_only=True)
class VariablesUnused(News):
    """Shell variables that would set options of the job; Slurm's command does not get them."""

    code: ClassVar[str] = "variables-unused"
    #: The job differs from what the variables request.
    usual: ClassVar[Level] = Level.WARNING
    variables: tuple[str, ...]

    def __str__(self) -> str:
        """Return the variables, and where to set the options instead."""
        verb = "is" if len(self.variables) == 1 else "are"
        unused = ", ".join(self.variables)
        return f"{unused} of this shell {verb} not used; set the options of the job in farm.toml, or as flags"


@dataclass(frozen=True, kw_only=True)
class TimeShort(News):
    """The time limit in `key` leaves no time to work.

    `signal` arrives between `earliest` and `latest` seconds before the limit, which is `seconds` long. The job needs a
    limit of more than `least` seconds. All times are in seconds.
    """

    code: ClassVar[str] = "time-short"
    #: The job is submitted anyway.
    usual: ClassVar[Level] = Level.WARNING
    key: str
    limit: str
    signal: str
    seconds: float
    earliest: float
    latest: float
    least: float

    def __str__(self) -> str:
        """Return the limit, why it is too short, and the limit to request."""
        return (
            f"{self.key} is {self.limit} ({self.seconds:g} s), but Slurm signals the job to end {self.latest:g} to "
            f"{self.earliest:g} s before that ({self.signal}), so it may have no time to work; request more than "
            f"{self.least:g} s"
        )


@dataclass(frozen=True, kw_only=True)
class JobAdopted(News):
    """A job was found whose `deploy` ended before it had recorded the job.

    `submitted` is the time of that deploy, in seconds since 1970.
    """

    code: ClassVar[str] = "job-adopted"
    #: The job uses hours, and nobody has seen its ID yet.
    usual: ClassVar[Level] = Level.WARNING
    submitted: float

    def __str__(self) -> str:
        """Return the job, where it comes from, and how to end it."""
        return (
            f"job {self.job} comes from the deploy of {moment(self.submitted)}, which did not finish; the job is now "
            f"recorded, 'exatrkx-hpc stop {self.job}' ends it"
        )


@dataclass(frozen=True, kw_only=True)
class SubmissionOpen(News):
    """A `deploy` did not finish, and it is not known whether its job exists, or its job cannot be recorded.

    `submitted` is the time of that deploy, in seconds since 1970. `reason` ends with the next step.
    """

    code: ClassVar[str] = "submission-open"
    #: A job that nobody sees may use hours.
    usual: ClassVar[Level] = Level.WARNING
    submitted: float
    reason: str

    def __str__(self) -> str:
        """Return the deploy, the reason and the next step."""
        return f"the deploy of {moment(self.submitted)} did not finish: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class JobEndsFirst(News):
    """The servers of a job end before a run of clients is done at its current rate.

    `events` are left, which take `needed` seconds; the servers end in `left` seconds.
    """

    code: ClassVar[str] = "job-ends-first"
    #: Somebody must act, or the run stops without all results.
    usual: ClassVar[Level] = Level.WARNING
    events: int
    needed: float
    left: float

    def __str__(self) -> str:
        """Return both times and the next step."""
        return (
            f"{self.events} events are left, about {duration(round(self.needed))} at the current rate, but the servers "
            f"of job {self.job} end in {duration(round(self.left))}; when they have, deploy another job and run the "
            "same command again to go on"
        )


@dataclass(frozen=True, kw_only=True)
class EndpointJobEnded(News):
    """A run of clients stopped, and the job of its endpoint has ended; `reason` ends with the next step, if any."""

    code: ClassVar[str] = "endpoint-job-ended"
    usual: ClassVar[Level] = Level.WARNING
    state: JobState
    reason: str

    def __str__(self) -> str:
        """Return the job, its state and the reason."""
        return f"job {self.job}, whose servers this run asked, has ended: {self.state.value}, {self.reason}"
