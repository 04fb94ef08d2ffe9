"""What the farm asks of a container engine; an engine is one file, which answers this.

What most engines have in common is answered here, so that an engine says only what it does in its own way. An engine
knows a container's specification and the name of an image, and nothing of farms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.words import Word

#: For a big image over a slow network, in seconds.
PULL_DEADLINE: Final = 3600.0


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of an engine on this machine, and how long it may take, in seconds."""

    words: tuple[str, ...]
    deadline: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Something that only the engine can tell, because the site has decided it: a command that succeeds or fails.

    `found` says what is so when the command succeeds; `refusal` makes of its answer what is wrong and, after a
    semicolon, what to do.
    """

    command: Command
    found: str
    refusal: Callable[[Completed], str]


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container on this machine: its name, the folders of the host that are mounted, whether the container runs."""

    name: str
    mounts: tuple[str, ...]
    running: bool


class ContainerEngine(ABC):
    """What starts the container of a server, and what this engine can and cannot do.

    `programs` are what the engine needs on this machine, in the order in which a farm meets them. `has_container` is
    false only where the server is a program of the node. With `images_of_each_node` every node has a store of its own,
    so that another machine cannot tell which images are there.
    """

    programs: ClassVar[tuple[str, ...]] = ()
    has_container: ClassVar[bool] = True
    images_of_each_node: ClassVar[bool] = False

    @abstractmethod
    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return what the engine cannot do of `spec`, each in one line with what to do about it after a semicolon.

        Faults are said before anything is submitted or written.
        """

    @abstractmethod
    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command that starts the container and, in it, the server, whose own words come last."""

    @abstractmethod
    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> Command:
        """Return what runs `command` in the image, on a machine without GPUs, for its answer."""

    # Slurm and the node

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return the #SBATCH options that the engine reads, as pairs of name and value."""
        return ()

    def exports(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return the variables of the node that the engine reads before it starts the container."""
        return ()

    def foreign(self) -> tuple[str, ...]:
        """Return the variables by which a shell's own allocation would say something else to the engine."""
        return ()

    # Images

    def image_name(self, image: str) -> str:
        """Return the name that the engine knows `image` by, which server.image may write in another form."""
        return image

    def find_image(self, image: str, *, other_machines: bool) -> str:
        """Return what the engine says of the image; `other_machines` is whether others than this one must see it.

        Raises LaunchError when no server could start from it, MissingComponent when the engine's program is not here.
        """
        return self.image_name(image)

    def pull(self, image: str) -> Command | None:
        """Return what pulls `image` into the engine's store; None for one that is not pulled."""
        return None

    # What a killed server leaves

    def removal(self) -> tuple[Word, ...]:
        """Return what removes a killed server's container, `Var("container")`; empty if none can be left.

        The command succeeds for a container that is gone, and takes several names in the place of one.
        """
        return ()

    def listing(self) -> tuple[str, ...]:
        """Return the command that tells every container of this user; empty if none can be left."""
        return ()

    def read_listing(self, text: str) -> tuple[Container, ...]:
        """Return the containers that the answer to `listing` tells; raises ValueError when it is no such answer."""
        return ()

    # What doctor asks, beside the programs, the faults and the image

    def trials(self, spec: ContainerSpec) -> tuple[Trial, ...]:
        """Return what is to be tried in the image; folders that are not here are left out."""
        return ()
