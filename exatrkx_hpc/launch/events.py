"""What happens before a job is submitted, as news."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from exatrkx_hpc.base.news import Level, News


@dataclass(frozen=True, kw_only=True)
class ModelsBuilding(News):
    """A model repository is being built, for servers on `device`, with so many instances of each model.

    `fused` is whether it has the fused model.
    """

    code: ClassVar[str] = "models-building"
    repository: str
    device: str
    instances: int = 1
    fused: bool = True

    def __str__(self) -> str:
        """Return where it will be."""
        several = f", {self.instances} instances of each" if self.instances > 1 else ""
        without = "" if self.fused else ", without exatrkx_fused"
        return f"models: building {self.repository} for {self.device}{several}{without}"


@dataclass(frozen=True, kw_only=True)
class ImagePulling(News):
    """An image is being pulled with this command of its engine."""

    code: ClassVar[str] = "image-pulling"
    command: str

    def __str__(self) -> str:
        """Return the command."""
        return f"image: {self.command}"


@dataclass(frozen=True, kw_only=True)
class ImageFound(News):
    """The image that servers will start from is there; `image` is how its engine calls it."""

    code: ClassVar[str] = "image-found"
    image: str

    def __str__(self) -> str:
        """Return the image."""
        return f"image: {self.image}"


@dataclass(frozen=True, kw_only=True)
class PackagesFetching(News):
    """The packages that models import are being fetched for `python`, a version, to the folder `environment`."""

    code: ClassVar[str] = "packages-fetching"
    packages: tuple[str, ...]
    python: str
    environment: str

    def __str__(self) -> str:
        """Return what is fetched, and where it will be."""
        return f"packages: fetching {', '.join(self.packages)} for Python {self.python} to {self.environment}"


@dataclass(frozen=True, kw_only=True)
class ModelsWithoutPackages(News):
    """Models of a repository that was there already take no notice of the packages in `environment`."""

    code: ClassVar[str] = "models-without-packages"
    #: They may miss what they import.
    usual: ClassVar[Level] = Level.WARNING
    models: tuple[str, ...]
    repository: str
    environment: str

    def __str__(self) -> str:
        """Return the models, and how a repository is built that uses the packages."""
        return (
            f"models: {', '.join(self.models)} of {self.repository} use the image's own Python, without the packages "
            f"of {self.environment}; 'exatrkx-hpc models build --environment {self.environment}' builds a repository "
            "that uses them"
        )


@dataclass(frozen=True, kw_only=True)
class VariablesUnused(News):
    """These variables of the shell would be options of the job, and Slurm's command does not get them."""

    code: ClassVar[str] = "variables-unused"
    #: The job is another one than they say.
    usual: ClassVar[Level] = Level.WARNING
    variables: tuple[str, ...]

    def __str__(self) -> str:
        """Return the variables, and what counts in their place."""
        verb = "is" if len(self.variables) == 1 else "are"
        unused = ", ".join(self.variables)
        return f"{unused} of this shell {verb} not used; set the options of the job in farm.toml, or as flags"


@dataclass(frozen=True, kw_only=True)
class TimeShort(News):
    """The limit that `key` sets leaves no time to work in: `signal` comes `earliest` seconds before it, or later.

    `least` seconds are what the job needs to end; all times are in seconds.
    """

    code: ClassVar[str] = "time-short"
    #: The job is submitted all the same.
    usual: ClassVar[Level] = Level.WARNING
    key: str
    limit: str
    signal: str
    seconds: float
    earliest: float
    latest: float
    least: float

    def __str__(self) -> str:
        """Return the limit, why it is short, and what would do."""
        return (
            f"{self.key} is {self.limit} ({self.seconds:g} s), but Slurm signals the job to end {self.latest:g} to "
            f"{self.earliest:g} s before that ({self.signal}), so it may have no time to work; request more than "
            f"{self.least:g} s"
        )
