"""The certificate of an endpoint with TLS: given, or made for the farm and signed by itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import ConfigError, EndpointError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.ports import public_host
from exatrkx_hpc.base.process import find_program, run
from exatrkx_hpc.launch.run_dir import FarmDir

_REMEDY: Final = "install openssl, or set balancer.tls to given or off"
_DAYS: Final = 825
#: A certificate that ends within this time, in seconds, is made again.
_SOON: Final = 30 * 86400
_NAME: Final = re.compile(r"[A-Za-z0-9.:_-]{1,253}")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate (with its chain) and its private key, both PEM."""

    public: str
    private: str = field(repr=False)


def names_of(host: str, advertise: str = "") -> tuple[str, ...]:
    """Return the names and addresses by which clients reach an endpoint that listens on `host`, each once."""
    names = (advertise, public_host(host), host, socket.gethostname(), socket.getfqdn(), "localhost", "127.0.0.1")
    plain = (name.strip("[]") for name in names)
    return tuple(dict.fromkeys(name for name in plain if _NAME.fullmatch(name) and name not in ("0.0.0.0", "::")))


def given_certificate(certificate: Path, key: Path) -> Certificate:
    """Return the certificate of these two files; raises ConfigError if one is missing, or others may read the key."""
    try:
        if key.stat().st_mode & 0o077:
            raise ConfigError(f"balancer.certificate_key {key} is open to other users; 'chmod 600' it")
        return Certificate(public=certificate.read_text("ascii"), private=key.read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        where = error.filename if isinstance(error, OSError) else certificate
        raise ConfigError(f"cannot read {where}; check balancer.certificate and balancer.certificate_key") from error


def made_certificate(farm: FarmDir, names: Iterable[str]) -> Certificate:
    """Return the farm's own certificate; make it if there is none, one for other names, or one that ends soon.

    A new certificate has the names of the last one, too, and its key, so that a client that pins the last one accepts
    it. Raises MissingComponent without openssl, EndpointError when openssl fails, ConfigError when the farm's secrets
    cannot be written.
    """
    try:
        farm.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(farm):
            known = _names_in(farm)
            wanted = tuple(dict.fromkeys((*known, *names)))
            if wanted != known or not _valid(farm.certificate):
                _make(farm, wanted)
            return Certificate(public=farm.certificate.read_text("ascii"), private=farm.certificate_key.read_text())
    except OSError as error:
        raise ConfigError(
            f"cannot write the certificate below {farm.secrets} ({error.strerror}); check permissions and free space"
        ) from error


@contextlib.contextmanager
def _alone(farm: FarmDir) -> Iterator[None]:
    """Let one monitor at a time make the certificate, where the file system knows locks."""
    with (farm.secrets / "certificate.lock").open("w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _names_in(farm: FarmDir) -> tuple[str, ...]:
    """Return the names of the existing certificate, from its first line; () if there is none, or no key."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        first, _, rest = farm.certificate.read_text("ascii").partition("\n")
        if first.startswith("# ") and "BEGIN CERTIFICATE" in rest and farm.certificate_key.is_file():
            return tuple(first[2:].split())
    return ()


def _valid(certificate: Path) -> bool:
    done = _openssl("x509", "-in", str(certificate), "-noout", "-checkend", str(_SOON))
    return done == 0


def _make(farm: FarmDir, names: tuple[str, ...]) -> None:
    key = farm.certificate_key
    if not key.is_file():
        with _aside(farm) as made:
            _must(
                *("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", str(made)),
                what="a private key",
            )
            write_whole(key, made.read_bytes(), mode=0o600)
    with _aside(farm) as made:
        subjects = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names)
        _must(
            *("req", "-x509", "-new", "-key", str(key), "-days", str(_DAYS), "-subj", "/CN=exatrkx-hpc"),
            *("-addext", f"subjectAltName={subjects}", "-out", str(made)),
            what="a certificate",
        )
        write_whole(farm.certificate, f"# {' '.join(names)}\n{made.read_text('ascii')}", mode=0o600)


@contextlib.contextmanager
def _aside(farm: FarmDir) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=farm.secrets, prefix=".made.")  # mode 0600, which openssl keeps
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _must(*words: str, what: str) -> None:
    done = run([find_program("openssl", remedy=_REMEDY), *words], timeout=30)
    if done.returncode:
        raise EndpointError(f"openssl cannot make {what} for the endpoint: {done.complaint}; set balancer.tls to given")


def _openssl(*words: str) -> int:
    return run([find_program("openssl", remedy=_REMEDY), *words], timeout=30).returncode


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
