"""The interface of a container engine; each engine is one module.

The base class implements what most engines have in common. An engine knows a container's specification and the name of
an image; it does not know farms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.words import Word

#: Timeout of a pull, in seconds: enough for a big image over a slow network.
PULL_DEADLINE: Final = 3600.0


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of an engine on this machine, and its timeout, in seconds."""

    words: tuple[str, ...]
    deadline: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A check of the site's configuration that only the engine can make: a command that succeeds or fails.

    `found` describes the result of success. `refusal` makes a message of the output of a failed command: what is wrong
    and, after a semicolon, what to do.
    """

    command: Command
    found: str
    refusal: Callable[[Completed], str]


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container on this machine: its name, its mounts, and whether it runs."""

    name: str
    mounts: tuple[str, ...]
    running: bool


class ContainerEngine(ABC):
    """A container engine: the commands that it needs, and its limits.

    `programs` are the programs that the engine needs on this machine, in the order in which a farm uses them.
    `has_container` is false only if the server is a program on the node. With `images_of_each_node`, each node has its
    own image store, so that another machine cannot check which images it contains.
    """

    programs: ClassVar[tuple[str, ...]] = ()
    has_container: ClassVar[bool] = True
    images_of_each_node: ClassVar[bool] = False

    @abstractmethod
    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return the parts of `spec` that the engine does not support, one line each, with the next step after `; `.

        Faults are reported before anything is submitted or written.
        """

    @abstractmethod
    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command that starts the server in a container; the server's own words come last."""

    @abstractmethod
    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> Command:
        """Return the engine's command that runs `command` in the image, on a machine without GPUs."""

    # Slurm and the node

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return the #SBATCH options that the engine reads, as pairs of name and value."""
        return ()

    def exports(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return the variables that the engine reads on the node before it starts the container."""
        return ()

    def foreign(self) -> tuple[str, ...]:
        """Return the variables of a shell's allocation that would override the settings of the engine."""
        return ()

    # Images

    def image_name(self, image: str) -> str:
        """Return the engine's name of `image`, which server.image may write in another form."""
        return image

    def find_image(self, image: str, *, other_machines: bool) -> str:
        """Return the engine's description of the image; with `other_machines`, other machines must see the image.

        Raises LaunchError if no server can start from the image, MissingComponent if the engine is not on this machine.
        """
        return self.image_name(image)

    def pull(self, image: str) -> Command | None:
        """Return the command that pulls `image` into the engine's store; None for an image that is not pulled."""
        return None

    # Cleanup after a killed server

    def removal(self) -> tuple[Word, ...]:
        """Return the command that removes the container `Var("container")` of a killed server; () if none can remain.

        The command succeeds if the container does not exist, and accepts several names instead of one.
        """
        return ()

    def listing(self) -> tuple[str, ...]:
        """Return the command that lists all containers of this user; () if none can remain."""
        return ()

    def read_listing(self, text: str) -> tuple[Container, ...]:
        """Return the containers in the output of `listing`; raises ValueError if the output is not readable."""
        return ()

    # Further checks of doctor

    def trials(self, spec: ContainerSpec) -> tuple[Trial, ...]:
        """Return the commands to try in the image; folders that are not on this machine are left out."""
        return ()
