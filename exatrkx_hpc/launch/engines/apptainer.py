"""apptainer (formerly singularity): the host's network and /dev/shm, an image as a file or a URI.

apptainer keeps no named copy of an image that is a URI: each use pulls the image or takes it from the cache.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Final

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.launch.engines.base import PULL_DEADLINE, Command, ContainerEngine
from exatrkx_hpc.launch.engines.common import bad_image, no_modules, no_shm_size, registry_name, server_command
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.words import Word

_IMAGE = re.compile(r"[^-].*")


class Apptainer(ContainerEngine):
    """apptainer exec: a process of the user that leaves nothing behind."""

    programs: ClassVar[tuple[str, ...]] = ("apptainer",)

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return the settings that apptainer does not support, and mounts that it would split."""
        commas = (
            f"apptainer cannot mount {source} as {target}, because it cuts at a comma; use another folder"
            for source, target in spec.places
            if "," in source + target
        )
        image = bad_image(spec, _IMAGE, "docker://NAME:TAG, or a file")
        return (*image, *no_shm_size(spec, "apptainer"), *no_modules(spec, "apptainer"), *commas)

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command; the container inherits the variables of the host.

        `env` in the container sets the variables, because apptainer's --env splits a value at a comma and expands $.
        """
        return (
            "apptainer",
            "exec",
            *(("--nv",) if spec.gpus else ()),
            *(word for source, target in spec.places for word in ("--bind", f"{source}:{target}:ro")),
            self.image_name(spec.image),
            *server_command(spec),
        )

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> Command:
        """Return `command` in apptainer, which first pulls an image that is a URI."""
        image = self.image_name(spec.image)
        words = ("apptainer", "exec", image, *command)
        return Command(words=words, deadline=PULL_DEADLINE) if _is_uri(image) else Command(words=words)

    def image_name(self, image: str) -> str:
        """Return the file or the URI."""
        return f"docker://{registry_name(image)}" if image.startswith("docker:") else image

    def find_image(self, image: str, *, other_machines: bool) -> str:
        """Check that the file exists; a URI is not checked."""
        image = self.image_name(image)
        if _is_uri(image):
            return f"{image}, which each server fetches; 'apptainer pull FILE {image}' saves it as a file"
        if not Path(image).exists():
            raise LaunchError(f"{image} does not exist; create it with 'apptainer pull {image} docker://NAME:TAG'")
        return image


def _is_uri(image: str) -> bool:
    return "://" in image


ENGINE: Final = Apptainer()
