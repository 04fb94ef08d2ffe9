"""Read and write model repositories: folders of models, each with a config.pbtxt and version folders.

A config.pbtxt is a protobuf message in text form. It is parsed and written with the schema of tritonclient, so a
rewrite removes the comments of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.base.files import LFS_REMEDY, is_lfs_pointer, write_whole

CONFIG = "config.pbtxt"
#: The parameter of the Python backend that names a model's environment, a folder or a packed archive.
ENVIRONMENT = "EXECUTION_ENV_PATH"
#: The parameter of this package's TorchScript and ONNX stages that names the weight file in the version folder.
WEIGHTS = "weights"
#: The parameter of this package's stages that run networks: CPU threads per instance.
THREADS = "threads"


#: The mounts of a server's container, as pairs (path on this machine, path in the container); None without a container.
Places = tuple[tuple[str, str], ...] | None


def on_host(path: Path, places: Places) -> Path | None:
    """Return the path on this machine of a server's `path`; None if it is inside the image."""
    if places is None:
        return path
    for host, place in sorted(places, key=lambda pair: len(Path(pair[1]).parts), reverse=True):
        if path.is_relative_to(place):
            return Path(host) / path.relative_to(place)
    return None


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model of a repository: its folder and the message in its config.pbtxt."""

    folder: Path
    config: ModelConfig

    @property
    def name(self) -> str:
        """The name under which Triton serves the model: the name of its folder."""
        return self.folder.name

    @property
    def is_ensemble(self) -> bool:
        """Whether the model is an ensemble: steps through other models, without own code."""
        return bool(self.config.platform == "ensemble")

    @property
    def backend(self) -> str:
        """The backend that runs the model: `python`, `pytorch`, ...; empty for an ensemble."""
        if self.config.platform == "pytorch_libtorch":
            return "pytorch"
        return str(self.config.backend)

    @property
    def parameters(self) -> Mapping[str, str]:
        """The `parameters` of its config.pbtxt."""
        return MappingProxyType({key: value.string_value for key, value in self.config.parameters.items()})

    def versions(self) -> tuple[int, ...]:
        """Return the numbers of its version folders, the lowest first."""
        numbers = [int(entry.name) for entry in self.folder.iterdir() if entry.is_dir() and _is_version(entry)]
        return tuple(sorted(numbers))

    def served(self) -> tuple[int, ...]:
        """Return the versions that Triton serves under the model's version policy; by default the latest one."""
        policy, versions = self.config.version_policy, self.versions()
        choice = policy.WhichOneof("policy_choice")
        if choice == "all":
            return versions
        if choice == "specific":
            return tuple(version for version in versions if version in policy.specific.versions)
        latest = policy.latest.num_versions if choice == "latest" else 1
        return versions[-max(latest, 1) :]

    def files_needed(self) -> tuple[str, ...]:
        """Return the names of the files that a version folder must hold."""
        if self.is_ensemble:
            return ()
        if self.backend == "pytorch":
            return (self.config.default_model_filename or "model.pt",)
        if self.backend == "python":
            code = self.config.default_model_filename or "model.py"
            return (code, self.parameters[WEIGHTS]) if WEIGHTS in self.parameters else (code,)
        return ()


def model_folders(repository: Path) -> tuple[Path, ...]:
    """Return the model folders of a repository, sorted by name.

    Raises ModelError when the repository is not a folder or holds no model.
    """
    if not repository.is_dir():
        raise ModelError(f"{repository} is not a model repository: no such folder; check the path")
    folders = [entry for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        raise ModelError(f"{repository} is not a model repository: it holds no model folder; check the path")
    return tuple(sorted(folders))


def read_model(folder: Path) -> Model:
    """Return the model in a folder; raise ModelError when its config.pbtxt cannot be read."""
    return Model(folder=folder, config=read_config(folder / CONFIG))


def read_models(repository: Path) -> tuple[Model, ...]:
    """Return every model of a repository; raise ModelError when one of them cannot be read."""
    return tuple(read_model(folder) for folder in model_folders(repository))


def read_config(path: Path) -> ModelConfig:
    """Return the message in a config.pbtxt.

    Raises ModelError when the file cannot be read or is not the text form of Triton's ModelConfig.
    """
    try:
        return text_format.Parse(path.read_text(), ModelConfig())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; copy the model's folder again") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not text; copy the model's folder again") from error
    except text_format.ParseError as error:
        if is_lfs_pointer(path):
            raise ModelError(f"{path} is a Git LFS pointer, not the file itself; {LFS_REMEDY}") from error
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} is not a Triton model configuration: {reason}; correct that line") from error


def write_config(path: Path, config: ModelConfig) -> None:
    """Write a message as config.pbtxt, atomically."""
    write_whole(path, text_format.MessageToString(config))


def _is_version(entry: Path) -> bool:
    # Triton accepts integers from 1 on, and ignores every other name.
    return entry.name.isascii() and entry.name.isdigit() and not entry.name.startswith("0")
