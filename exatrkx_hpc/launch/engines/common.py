"""What each engine cannot do of a specification, said before a job is submitted.

Every function returns the faults, each in one line with what to do about it; none when all is well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from exatrkx_hpc.launch.engines.spec import DEFAULT_SHM_SIZE, ContainerSpec

#: In shifter these belong to the site; targets of the first kind are refused with all that lies below them.
_SHIFTERS_OWN = ("/etc", "/var", "/opt/udiImage")
_SHIFTERS_OWN_ALONE = ("/opt",)
#: What shifter lets a user mount to although it lies below one of its own.
_SHIFTERS_EXCEPTION = "/var/tmp"
#: shifter drops every other character of a path without a word (userInputPathFilter in its utility.c).
_SHIFTER_PATH = re.compile(r"[A-Za-z0-9_.+/-]*")
_SHIFTER_IMAGE = re.compile(r"(docker://|local:/|(docker|custom|local|id):)?[A-Za-z0-9][A-Za-z0-9_.:/@-]*")
_PODMAN_IMAGE = re.compile(r"([a-z-]+:/?/?)?[A-Za-z0-9/][A-Za-z0-9_.:/@-]*")
_APPTAINER_IMAGE = re.compile(r"[^-].*")
_SHM_SIZE = re.compile(r"[1-9][0-9]*[bkmgBKMG]?")
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def bare_faults(spec: ContainerSpec) -> tuple[str, ...]:
    """Without a container there is nowhere to mount a folder."""
    return tuple(
        f"engine none has no container, so {source} cannot be seen as {target}; take it out of server.mounts"
        for source, target in spec.mounts
        if source != target
    )


def shifter_faults(spec: ContainerSpec) -> tuple[str, ...]:
    """Shifter sets no shared memory, keeps some places to itself, and drops odd characters of a path."""
    own = [
        f"shifter shows the image's own {folder}, not the node's; put it on the site's shared file system"
        for folder in spec.folders
        if _below(folder, _SHIFTERS_OWN)
    ]
    image = _bad_image(spec, _SHIFTER_IMAGE, "docker:NAME:TAG")
    return (
        *image,
        *_no_shm_size(spec, "shifter"),
        *own,
        *_bad_volumes(spec),
        *_empty_values(spec),
        *_odd_modules(spec),
    )


def podman_faults(spec: ContainerSpec) -> tuple[str, ...]:
    """Podman knows no site modules, and takes a wrong name or amount for something else."""
    return (*_podman_faults(spec, "podman"), *_no_modules(spec, "podman"))


def podman_hpc_faults(spec: ContainerSpec) -> tuple[str, ...]:
    """Beside what podman cannot do: a module must be able to be a flag, and such a flag reaches no server."""
    modules = [
        f"podman-hpc has no module {name!r}; name modules such as gpu or nccl in server.modules"
        for name in spec.modules
        if not _MODULE.fullmatch(name)
    ]
    return (*_podman_faults(spec, "podman-hpc"), *modules, *_stolen(spec))


def apptainer_faults(spec: ContainerSpec) -> tuple[str, ...]:
    """Apptainer sets no shared memory, knows no site modules, and cuts a mount at a comma."""
    commas = [
        f"apptainer cannot mount {source} as {target}, because it cuts at a comma; use another folder"
        for source, target in spec.places
        if "," in source + target
    ]
    image = _bad_image(spec, _APPTAINER_IMAGE, "docker://NAME:TAG, or a file")
    return (*image, *_no_shm_size(spec, "apptainer"), *_no_modules(spec, "apptainer"), *commas)


def _podman_faults(spec: ContainerSpec, program: str) -> Iterator[str]:
    yield from _bad_image(spec, _PODMAN_IMAGE, "docker.io/NAME:TAG")
    if not _SHM_SIZE.fullmatch(spec.shm_size):
        yield f"{program} reads no amount of memory in {spec.shm_size!r}; write server.shm_size such as '20g'"


def _stolen(spec: ContainerSpec) -> Iterator[str]:
    """Yield a fault for each word of the server that podman-hpc 1.2 would read, although it follows the image."""
    own = {"--help", "--gpu", *(f"--{name}" for name in spec.modules)}
    for word in spec.command:
        if word in own:
            yield f"podman-hpc takes {word} for an option of its own; take it out of server.extra_arguments"


def _bad_volumes(spec: ContainerSpec) -> Iterator[str]:
    for source, target in spec.mounts:
        own = _below(target, _SHIFTERS_OWN) or target.rstrip("/") in ("", *_SHIFTERS_OWN_ALONE)
        if own and target.rstrip("/") != _SHIFTERS_EXCEPTION:
            yield f"shifter refuses {target} as the target of a mount; choose another in server.mounts"
        elif not _SHIFTER_PATH.fullmatch(source + target):
            yield (
                f"shifter drops characters of the mount {source}:{target}; "
                "use letters, digits and _ . + - / in server.mounts"
            )


def _empty_values(spec: ContainerSpec) -> Iterator[str]:
    for name, value in spec.environment:
        if not value:
            yield f"shifter refuses the empty value of {name}; take it out of server.environment, or give it a value"


def _odd_modules(spec: ContainerSpec) -> Iterator[str]:
    for name in spec.modules:
        if not _MODULE.fullmatch(name):
            yield f"shifter has no module {name!r}; name modules such as gpu or mpich in server.modules"


def _bad_image(spec: ContainerSpec, form: re.Pattern[str], example: str) -> Iterator[str]:
    if not spec.image:
        yield f"no image is named; set server.image, such as {example}"
    elif not form.fullmatch(spec.image):
        yield f"{spec.image!r} is no name of an image; write server.image as {example}"


def _no_shm_size(spec: ContainerSpec, engine: str) -> Iterator[str]:
    if spec.shm_size != DEFAULT_SHM_SIZE:
        yield f"{engine} cannot set the size of /dev/shm, which is the node's; take server.shm_size out"


def _no_modules(spec: ContainerSpec, engine: str) -> Iterator[str]:
    for name in spec.modules:
        if name != "gpu":  # which server.device says anyway
            yield f"{engine} has no site module {name!r}; take it out of server.modules"


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)
