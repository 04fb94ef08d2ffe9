"""Checks of the farm's secrets: only their owner may read them, they can be used, and no certificate ends soon."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from exatrkx_hpc.base.credentials import read_private, read_secret
from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.doctor.finding import Finding, asked
from exatrkx_hpc.fleet.balancer.certificate import lasts
from exatrkx_hpc.launch.run_dir import FarmDir


def secret_findings(farm: Farm) -> Iterator[Finding]:
    """Yield a finding for each secret and certificate that exists; the others are made at first use."""
    folder = FarmDir.of(farm)
    for secret in (folder.token, folder.server_key):
        if secret.exists():
            yield asked(f"secret {secret.name}", partial(_known, secret))
    keys, certificates = sorted(folder.secrets.glob("*.key")), sorted(folder.secrets.glob("*.pem"))
    if farm.balancer.tls == "off":
        certificates = []
    renew = "restart the monitors, which make a new one"
    if farm.balancer.tls == "given":
        keys, certificates = [Path(farm.balancer.certificate_key)], [Path(farm.balancer.certificate)]
        renew = "renew balancer.certificate, then restart the monitors"
    for key in keys:
        yield asked(f"key {key.name}", partial(_private, key))
    for certificate in certificates:
        yield asked(f"certificate {certificate.name}", partial(_lasting, certificate, renew))


def _known(secret: Path) -> str:
    read_secret(secret)
    return str(secret)


def _private(key: Path) -> str:
    read_private(key)
    return str(key)


def _lasting(certificate: Path, renew: str) -> str:
    if not lasts(certificate):
        raise ConfigError(f"{certificate} cannot be read, or ends within 30 days; {renew}")
    return str(certificate)
