"""No container: the server is a program on the node."""

from __future__ import annotations

from typing import ClassVar, Final

from exatrkx_hpc.launch.engines.base import Command, ContainerEngine
from exatrkx_hpc.launch.engines.common import server_command
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.words import Word


class Bare(ContainerEngine):
    """A program on the node, with the node's folders, variables and network."""

    has_container: ClassVar[bool] = False

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return the mounts with a different path in the container, because there is no container."""
        return tuple(
            f"engine none has no container, so {source} cannot be mounted as {target}; remove it from server.mounts"
            for source, target in spec.mounts
            if source != target
        )

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the server's own command."""
        return server_command(spec)

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> Command:
        """Return `command` unchanged."""
        return Command(words=command)


ENGINE: Final = Bare()
