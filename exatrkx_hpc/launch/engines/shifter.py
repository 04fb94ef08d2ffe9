"""NERSC's shifter: Slurm options name the image; network and /dev/shm are the node's.

shifter cannot set the size of shared memory, reserves some folders of a container, and drops special characters of a
path. Its image gateway pulls and lists the images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.launch.engines.base import PULL_DEADLINE, Command, ContainerEngine, Trial
from exatrkx_hpc.launch.engines.common import MODULE, SETUP, ask, bad_image, no_shm_size
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.words import Word

#: Kinds of images; a name without a kind is of the first kind.
_KINDS = ("docker", "custom", "local", "id")
#: Kinds of images that are not looked up in the image gateway.
_NOT_OF_THE_GATEWAY = ("id", "local")
_IMAGE = re.compile(r"(docker://|local:/|(docker|custom|local|id):)?[A-Za-z0-9][A-Za-z0-9_.:/@-]*")
#: Mount targets that shifter refuses: _SITES_OWN with everything below, and _SITES_OWN_ALONE itself.
_SITES_OWN = ("/etc", "/var", "/opt/udiImage")
_SITES_OWN_ALONE = ("/opt",)
#: A mount target that shifter accepts, although it is below _SITES_OWN.
_EXCEPTION = "/var/tmp"
#: The characters that shifter keeps in a path; it silently drops others (userInputPathFilter in its utility.c).
_PATH = re.compile(r"[A-Za-z0-9_.+/-]*")


class Shifter(ContainerEngine):
    """shifter with its image gateway, whose program is `shifterimg`."""

    programs: ClassVar[tuple[str, ...]] = ("shifter", "shifterimg")

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return the settings that shifter does not support or refuses."""
        return (
            *bad_image(spec, _IMAGE, "docker:NAME:TAG"),
            *no_shm_size(spec, "shifter"),
            *_hidden_folders(spec),
            *_bad_volumes(spec),
            *_empty_values(spec),
            *_odd_modules(spec),
        )

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command; the container inherits the variables of the host."""
        return ("shifter", *(f"--env={name}={value}" for name, value in spec.environment), *spec.command)

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> Command:
        """Return `command` in shifter, without modules."""
        return Command(words=("shifter", self._image_option(spec), "--module=none", *command))

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return image, modules and volumes, which shifter's Slurm plugin reads.

        `folders` are not mounted, because the target of a volume must exist in the image. They must be on a file system
        that the site mounts into every container, such as scratch.
        """
        return tuple((name, value) for name, _, value in self._settings(spec))

    def exports(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return the same settings as variables, because #SBATCH lines have no effect in a shell's allocation."""
        return tuple((variable, value) for _, variable, value in self._settings(spec))

    def foreign(self) -> tuple[str, ...]:
        """Return the variables of Slurm's plugin for the allocation's image, which override SHIFTER_IMAGEREQUEST."""
        return tuple(f"{prefix}SHIFTER_{name}" for prefix in ("", "SLURM_SPANK_") for name in ("IMAGE", "IMAGETYPE"))

    def image_name(self, image: str) -> str:
        """Return KIND:NAME."""
        if image.startswith("docker://"):
            return f"docker:{image.removeprefix('docker://')}"
        return image if _kind(image) in _KINDS else f"docker:{image}"

    def find_image(self, image: str, *, other_machines: bool) -> str:
        """Look the image up in the image gateway.

        The gateway prints nothing about an image that it does not have. So output from a failed lookup is an error.
        """
        image = self.image_name(image)
        if _kind(image) in _NOT_OF_THE_GATEWAY:
            return f"{image}, which the image gateway is not asked about"
        done = ask(Command(words=("shifterimg", "lookup", image)))
        said = done.stdout.split()
        if done.returncode == 0 and said:
            return f"{image}, {said[-1][:12]}"
        if said or done.stderr.strip():
            again = f"retry with 'shifterimg lookup {image}'"
            raise LaunchError(f"the image gateway does not report whether it has {image}: {done.complaint}; {again}")
        listed = "correct server.image; 'shifterimg images' lists the images"
        raise LaunchError(f"the image gateway has no {image}; {SETUP if self.pull(image) else listed}")

    def pull(self, image: str) -> Command | None:
        """Return the command that makes the gateway pull an image; None unless the image is from a registry."""
        image = self.image_name(image)
        pulled = _kind(image) == "docker"
        return Command(words=("shifterimg", "pull", image), deadline=PULL_DEADLINE) if pulled else None

    def trials(self, spec: ContainerSpec) -> tuple[Trial, ...]:
        """Return a trial for each mount and folder: the site decides which mounts and folders shifter allows."""
        image = self._image_option(spec)
        moved = [(source, target) for source, target in spec.mounts if source != target]
        kept = [source for source, target in spec.mounts if source == target]
        return (
            *(_mount_trial(image, source, target) for source, target in moved if Path(source).exists()),
            *(_folder_trial(image, name) for name in dict.fromkeys((*spec.folders, *kept)) if Path(name).exists()),
        )

    def _settings(self, spec: ContainerSpec) -> tuple[tuple[str, str, str], ...]:
        """Return shifter's settings: the option of Slurm, the variable on the node, and the value of each."""
        volumes = ";".join(f"{source}:{target}:ro" for source, target in spec.mounts if source != target)
        settings = (
            ("image", "SHIFTER_IMAGEREQUEST", self.image_name(spec.image)),
            ("module", "SHIFTER_MODULE", ",".join(spec.modules)),
            ("volume", "SHIFTER_VOLUME", volumes),
        )
        return tuple((name, variable, value) for name, variable, value in settings if value)

    def _image_option(self, spec: ContainerSpec) -> str:
        return f"--image={self.image_name(spec.image)}"


def _kind(image: str) -> str:
    return image.partition(":")[0]


def _hidden_folders(spec: ContainerSpec) -> Iterator[str]:
    for folder in spec.folders:
        if _below(folder, _SITES_OWN):
            yield f"shifter shows the image's own {folder}, not the node's; put it on the site's shared file system"


def _bad_volumes(spec: ContainerSpec) -> Iterator[str]:
    for source, target in spec.mounts:
        own = _below(target, _SITES_OWN) or target.rstrip("/") in ("", *_SITES_OWN_ALONE)
        if own and target.rstrip("/") != _EXCEPTION:
            yield f"shifter refuses {target} as the target of a mount; choose another in server.mounts"
        elif not _PATH.fullmatch(source + target):
            yield (
                f"shifter drops characters of the mount {source}:{target}; "
                "use letters, digits and _ . + - / in server.mounts"
            )


def _empty_values(spec: ContainerSpec) -> Iterator[str]:
    for name, value in spec.environment:
        if not value:
            yield f"shifter refuses the empty value of {name}; remove it from server.environment, or set a value"


def _odd_modules(spec: ContainerSpec) -> Iterator[str]:
    for name in spec.modules:
        if not MODULE.fullmatch(name):
            yield f"shifter has no module {name!r}; use modules such as gpu or mpich in server.modules"


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _mount_trial(image: str, source: str, target: str) -> Trial:
    def refusal(done: Completed) -> str:
        remedy = "mount a folder that the site shows in every container, to one that the image has or to /NAME"
        return f"shifter does not mount {source} as {target}: {done.complaint}; {remedy} (server.mounts)"

    command = Command(words=("shifter", image, f"--volume={source}:{target}:ro", "true"))
    return Trial(command=command, found=f"{source} as {target}", refusal=refusal)


def _folder_trial(image: str, folder: str) -> Trial:
    def refusal(done: Completed) -> str:
        why = f": {done.complaint}" if done.stderr.strip() else ""
        remedy = "put it on a file system that the site shows in every container, as scratch is"
        return f"{folder} is not seen there{why}; {remedy}"

    return Trial(command=Command(words=("shifter", image, "test", "-d", folder)), found=folder, refusal=refusal)


ENGINE: Final = Shifter()
