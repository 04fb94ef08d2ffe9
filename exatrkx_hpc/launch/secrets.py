"""The secrets of a farm, and the calls that its servers answer only to the balancer.

A farm has one token, which clients show to the balancer, and one key, which the balancer shows to the servers. Both are
made at first use and stay until a person removes them, so that a second job, or a second endpoint, fits the first.
"""

from __future__ import annotations

from typing import Final

from exatrkx_hpc.base.credentials import make_secret
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.words import Var, Word

#: The name of the servers' key: header of an HTTP call, and with GRPC_PREFIX of a gRPC call (Triton's rule).
KEY_HEADER: Final = "exatrkx-key"
GRPC_PREFIX: Final = "triton-grpc-protocol-"
#: Triton's groups of calls that change a server or read its memory. No server of a farm answers them without the key,
#: and the balancer passes none of them on but the repository's index.
DANGEROUS: Final = ("shared-memory", "model-repository", "trace", "logging")
#: The groups that a client needs. Health and metadata stay open: the monitor's probes and plain checks use them.
FOR_CLIENTS: Final = ("inference", "statistics", "model-config")


def farm_token(farm: FarmDir) -> str:
    """Return the token of the farm, made at first use; raises ConfigError as `make_secret`."""
    return make_secret(farm.token)


def farm_server_key(farm: FarmDir) -> str:
    """Return the key of the farm's servers, made at first use; raises ConfigError as `make_secret`."""
    return make_secret(farm.server_key)


def key_headers(key: str, *, grpc: bool) -> dict[str, str]:
    """Return the headers of a call with which a program of the farm reaches a server without the balancer."""
    return {f"{GRPC_PREFIX if grpc else ''}{KEY_HEADER}": key}


def restrictions(farm: Farm) -> tuple[Word, ...]:
    """Return the arguments of tritonserver that close the dangerous calls, and without `open` access all but probes.

    The script reads the key from its file on the node, so that neither plan nor script holds it. It stands in the
    arguments of the running server: tritonserver takes it nowhere else.
    """
    closed = DANGEROUS if farm.balancer.access == "open" else (*DANGEROUS, *FOR_CLIENTS)
    return tuple(
        (f"--{option}={','.join(closed)}:{KEY_HEADER}=", Var("server_key"))
        for option in ("grpc-restricted-protocol", "http-restricted-api")
    )
