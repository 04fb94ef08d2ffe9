"""The image of a farm: pull it, and check that it exists before a job waits in the queue."""

from __future__ import annotations

import contextlib
import re

from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.base.process import find_program, run
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.engines.common import SETUP
from exatrkx_hpc.launch.engines.table import engine_of
from exatrkx_hpc.launch.events import ImageFound, ImagePulling
from exatrkx_hpc.launch.schedulers import abilities_of

_CHECK_NAME = "check the name in server.image, and that this machine reaches its registry"
#: Text that an engine overwrites in a terminal (a carriage return follows), and escape sequences.
_TERMINAL = re.compile(r"[^\n]*\r(?!\n)|\x1b\[[0-9;]*[A-Za-z]")


def refuse_missing_image(farm: Farm) -> None:
    """Raise LaunchError if no server of `farm` can start from its image, as far as this machine can check.

    It cannot check an engine that is only on the nodes, or an engine with a separate image store on each node.
    """
    engine = engine_of(farm)
    if not engine.has_container or (engine.images_of_each_node and abilities_of(farm).other_machines):
        return
    with contextlib.suppress(MissingComponent):
        find_image(farm)


def find_image(farm: Farm) -> str:
    """Return the engine's description of the image of `farm`.

    Raises LaunchError if no server can start from the image, MissingComponent if the engine is not on this machine.
    """
    return engine_of(farm).find_image(farm.server.image, other_machines=abilities_of(farm).other_machines)


def pull_image(farm: Farm, tell: Tell) -> None:
    """Pull the image of `farm` with the engine's own command, then check that the image exists.

    The check is needed because a failed pull may end with status 0. Raises LaunchError if no server can start from the
    image, MissingComponent if the engine is not on this machine.
    """
    if not engine_of(farm).has_container:
        return
    said = _pull(farm, tell)
    try:
        found = find_image(farm)
    except LaunchError as error:
        what, _, remedy = str(error).partition("; ")
        remedy = _CHECK_NAME if remedy == SETUP else remedy
        raise LaunchError(f"{what}{f', after a pull that said: {said}' if said else ''}; {remedy}") from error
    tell(ImageFound(image=found))


def _pull(farm: Farm, tell: Tell) -> str:
    """Pull the image and return the last line of the engine's output; '' for an image that is not pulled."""
    pull = engine_of(farm).pull(farm.server.image)
    if pull is None:
        return ""
    program, *words = pull.words
    command = " ".join(pull.words)
    tell(ImagePulling(command=command))
    path = find_program(program, remedy=f"load its module, or choose another server.engine than {farm.server.engine!r}")
    done = run([path, *words], timeout=pull.deadline)
    if done.returncode:
        raise LaunchError(f"{command} failed (exit {done.returncode}): {done.complaint}; {_CHECK_NAME}")
    return " ".join(_TERMINAL.sub("", done.stdout).strip().splitlines()[-1:])
