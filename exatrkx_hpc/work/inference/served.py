"""Ask what an endpoint serves: the version and the configuration of every model of a route, as far as the server tells.

An ensemble's own version says nothing of the models that it runs, so each of them is asked for, recursively. The
answer of a balancer is that of one server; the next one may come from another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2

from exatrkx_hpc.work.inference.channel import Channel
from exatrkx_hpc.work.results.models import digest_of

#: Fields of a configuration that change how fast a model answers, not what: a farm may be resized between two runs.
_SPEED: Final = (
    "instance_group",
    "dynamic_batching",
    "optimization",
    "model_warmup",
    "response_cache",
    "model_operations",
    "metric_tags",
    "model_metrics",
    "runtime",
)


async def served_models(channel: Channel, roots: Iterable[str], *, timeout: float) -> dict[str, str]:
    """Return the state of the models `roots` and of all models that they run; `timeout` is for each call, in seconds.

    Raises RequestFailed when a server does not answer, or does not tell its configuration.
    """
    found: dict[str, str] = {}
    left = list(roots)
    while left:
        name = left.pop(0)
        if name in found:
            continue
        config = await channel.config(name, timeout=timeout)
        version = await channel.version(name, timeout=timeout)
        found[name] = f"version {version}, configuration {digest_of(_what(config))}"
        left += [step.model_name for step in config.ensemble_scheduling.step]
    return found


def _what(config: model_config_pb2.ModelConfig) -> dict[str, Any]:
    """Return the parts of a configuration that decide over the answers."""
    fields: dict[str, Any] = MessageToDict(config, preserving_proto_field_name=True)
    for name in _SPEED:
        fields.pop(name, None)
    for parameter in fields.get("parameters", {}).values():  # the same files may be in another folder
        value = str(parameter.get("string_value", ""))
        if value.startswith("/"):
            parameter["string_value"] = value.rstrip("/").rpartition("/")[2]
    return fields
