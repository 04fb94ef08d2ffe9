"""Resolve each value of a farm and its source: flags over environment over farm.toml over the site's profile."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.config.schema import Farm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT_PREFIX = "EXATRKX_HPC_"
DEFAULT_FILE = "farm.toml"
#: The source of a value that is not set.
DEFAULT = "default"
#: Keys whose values may contain variables, so that a plain $ is written $$.
_FOLDERS = (
    "run_root",
    "server.model_repository",
    "server.python_environment",
    "server.mounts",
    "clients.workloads",
    "balancer.certificate",
    "balancer.certificate_key",
)
_SITES = Path(__file__).resolve().parent / "sites"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A farm, and the source of each value by dotted key."""

    farm: Farm
    sources: Mapping[str, str]


def known_keys() -> Iterator[str]:
    """Yield every key of farm.toml, in dotted form and in the order of the file."""
    yield from (key for key, _ in _fields(Farm))


def site_names() -> tuple[str, ...]:
    """Return the names of the site profiles in the package."""
    return tuple(sorted(path.stem for path in _SITES.glob("*.toml")))


def resolve(
    file: str | Path | None = None, *, flags: Mapping[str, object] | None = None, ambient: bool = True
) -> Resolved:
    """Return the farm that flags, environment, file and profile define together.

    Without `file`, read `farm.toml` of the current folder if it exists. `flags` has dotted keys. Without `ambient`,
    ignore file and environment and use only flags and profile. Raises ConfigError for an unknown key, an invalid
    value or an unreadable file.
    """
    layers = [("flag", dict(flags or {}))]
    if ambient:
        layers += [("environment", _from_environment()), _from_file(Path(file) if file is not None else None)]
    site = next((str(values["site"]) for _, values in layers if "site" in values), "generic")
    layers.append((f"profile {site}", _from_profile(site)))
    values: dict[str, object] = {}
    sources = dict.fromkeys(known_keys(), DEFAULT)
    for source, layer in reversed(layers):
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    return Resolved(farm=_validate(values, sources), sources=sources)


def commented_file(site: str, chosen: Mapping[str, object] | None = None) -> str:
    """Return a farm.toml for `site` with every key commented out, and its default for the site.

    The keys of `chosen` have the values of `chosen` and are not commented out.

    Raises ConfigError for a site without a profile.
    """
    chosen = {"site": site, **(chosen or {})}
    profile = {**_from_profile(site), **chosen}
    lines = [
        f"# Configuration of a farm of Triton servers, with the profile of site {site}. A commented-out value is the",
        "# default; remove the '# ' and change the value to override it.",
        "",
    ]
    section = ""
    for key, field in _fields(Farm):
        if (here := key.rpartition(".")[0]) != section:
            section = here
            lines += ["", f"[{section}]"]
        name, value = key.rpartition(".")[2], profile.get(key, field.default)
        mark = "" if key in chosen else "# "
        lines += [f"# {field.description}", f"{mark}{name} = {_toml(value)}"]
    return "\n".join(lines) + "\n"


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _toml(value: object) -> str:
    """Return a default as TOML; the JSON of strings, numbers, booleans and lists is valid TOML."""
    return "{}" if value == {} else json.dumps(value)


def value_of(farm: Farm, key: str) -> object:
    """Return the value of a dotted key."""
    value: object = farm
    for part in key.split("."):
        value = getattr(value, part)
    return value


def as_environment(farm: Farm, keys: Iterable[str]) -> dict[str, str]:
    """Return the environment variables that set these keys to the values of `farm`."""
    return {ENVIRONMENT_PREFIX + key.upper().replace(".", "_"): _as_text(key, value_of(farm, key)) for key in keys}


def _as_text(key: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("$", "$$") if key in _FOLDERS else text


def nearest(word: str, choices: tuple[str, ...]) -> str:
    """Return `; did you mean 'x'?` with the choice most similar to `word`, or '' if none is similar."""
    # Compare the last part first: a key in the wrong section is more likely than another key of the section. If two
    # sections have the key, suggest the first.
    by_last = {choice.rpartition(".")[2]: choice for choice in reversed(choices)}
    close = difflib.get_close_matches(word.rpartition(".")[2], by_last, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {by_last.get(close[0], close[0])!r}?" if close else ""


def _from_environment() -> dict[str, object]:
    names = {ENVIRONMENT_PREFIX + key.upper().replace(".", "_"): (key, field) for key, field in _fields(Farm)}
    values: dict[str, object] = {}
    for name, text in os.environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        if name not in names:
            raise ConfigError(f"environment: unknown variable {name!r}{nearest(name, tuple(names))}")
        key, field = names[name]
        values[key] = _parse_text(text, name) if isinstance(field.default, tuple | dict) else text
    return values


def _parse_text(text: str, name: str) -> object:
    """Parse a list or table from the environment, written as JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f'environment: {name} must be written as JSON, such as ["a"]: {error.msg}') from error


def _from_file(file: Path | None) -> tuple[str, dict[str, object]]:
    path = file or Path(DEFAULT_FILE)
    try:
        path.stat()
    except FileNotFoundError as error:
        if file is None:
            return str(path), {}
        raise ConfigError(f"{path} does not exist; create it with 'exatrkx-hpc init SITE'") from error
    except OSError:
        pass  # _read reports the error
    return str(path), _read(path)


def _from_profile(site: str) -> dict[str, object]:
    if site not in site_names():
        names = ", ".join(site_names())
        raise ConfigError(f"unknown site {site!r}; the profiles are {names}")
    return {**_read(_SITES / f"{site}.toml"), "site": site}


def _read(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return dict(_flatten(table, path))


def _flatten(table: Mapping[str, Any], path: Path, prefix: str = "") -> Iterator[tuple[str, object]]:
    keys = tuple(known_keys())
    sections = {key.rpartition(".")[0] for key in keys}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if key in keys:
            yield key, value
        elif key in sections and isinstance(value, dict):
            yield from _flatten(value, path, f"{key}.")
        elif key in sections:
            raise ConfigError(f"{path}: {key!r} is a section; write it as [{key}]")
        else:
            here = tuple(sections - {""}) if isinstance(value, dict) else keys
            raise ConfigError(f"{path}: unknown key {key!r}{nearest(key, here)}")


def _validate(values: Mapping[str, object], sources: Mapping[str, str]) -> Farm:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    try:
        return Farm.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, sources)) from error


def _first_problem(error: ValidationError, sources: Mapping[str, str]) -> str:
    problem = error.errors()[0]
    keys = tuple(known_keys())
    parts = [str(part) for part in problem["loc"]]
    key = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in keys), None)
    message = problem["msg"].removeprefix("Value error, ")
    if key is None:
        return f"{'.'.join(parts) or 'farm'}: {message}"
    got = f" (got {problem['input']!r})" if isinstance(problem["input"], str | int | float) else ""
    return f"{sources[key]}: {key}: {message[:1].lower()}{message[1:]}{got}"
