"""Records of servers, as a job writes them."""

from __future__ import annotations

from exatrkx_hpc.fleet.members.record import ServerRecord


def record(name: str = "n1-0", **values: object) -> ServerRecord:
    fields = {
        "server": name,
        "instance": f"7/{name}/1",
        "job": "7",
        "node": name.partition("-")[0],
        "address": "10.0.0.1",
        "http_port": 8000,
        "grpc_port": 8001,
        "metrics_port": 8002,
        "gpus": "0,1",
        "pid": 100,
        "starts": 1,
        "state": "starting",
        "note": "start number 1",
        "updated": 0,
    }
    return ServerRecord.model_validate({**fields, **values})
