"""The parameters of the fused model's config.pbtxt, as the server and the tools beside it read them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, PipelineSettings


def networks_folder(folder: Path, parameters: Mapping[str, str]) -> Path:
    """Return the folder of `embed`, `filter` and `gnn` for the fused model in `folder`."""
    # By its name alone: behind a link, the system's own '..' would be beside what the link leads to.
    return Path(os.path.normpath(folder / parameters.get("networks", "..")))


def settings_of(parameters: Mapping[str, str]) -> PipelineSettings:
    """Return the settings that `parameters` name by their fields; the others have their defaults.

    Raises ValueError for a value that is no number.
    """
    stated = {
        field.name: type(getattr(DEFAULT_SETTINGS, field.name))(parameters[field.name])
        for field in dataclasses.fields(PipelineSettings)
        if field.name in parameters
    }
    return dataclasses.replace(DEFAULT_SETTINGS, **stated)
