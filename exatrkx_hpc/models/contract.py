"""The two contracts of traccc's twin: which input tensors its configuration has."""

from __future__ import annotations

from typing import Literal, TypeAlias

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.models.code import stage_of
from exatrkx_hpc.models.repository import Model
from exatrkx_hpc.traccc.tensors import RAW_INPUTS

Contract: TypeAlias = Literal["current", "raw"]


def set_contract(model: Model, contract: Contract) -> None:
    """Give the configuration of the twin the inputs of the contract; leave one of the current contract as it is.

    Raises ConfigError for another model: a site's backend has the contract that it was written for.
    """
    if contract == "current":
        return
    if stage_of(model) != "TracccStage":
        raise ConfigError(f"--contract {contract} applies to traccc-cpu only, not to {model.name}; omit --contract")
    config: ModelConfig = model.config
    del config.input[:]
    config.input.add(name=RAW_INPUTS[0], data_type=DataType.TYPE_UINT8, dims=[-1])
