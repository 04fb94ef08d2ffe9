"""The certificate of an endpoint with TLS: given, or made for the farm and signed by its own authority."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Final

from exatrkx_hpc.base.errors import ConfigError, EndpointError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.ports import public_host
from exatrkx_hpc.base.process import Completed, find_program, run
from exatrkx_hpc.launch.run_dir import FarmDir

_INSTEAD: Final = "set balancer.tls to given or off"
_CURVE: Final = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1")
#: Configurations of openssl, so that those of the site do not matter.
_AUTHORITY: Final = """\
[req]
distinguished_name = name
x509_extensions = ext
prompt = no
[name]
CN = exatrkx-hpc farm
[ext]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
"""
_ENDPOINT: Final = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = exatrkx-hpc endpoint
[ext]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = {subjects}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
_DAYS: Final = 825
#: A certificate that ends within this time, in seconds, is made again.
_SOON: Final = 30 * 86400
#: In seconds. Making a certificate takes well below a second.
_PATIENCE: Final = 60.0
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
    """Return a certificate of the farm for these names; make it if there is none, or one for other names.

    The farm's own authority signs it. Clients pin the authority, so that they accept a new certificate, such as one for
    another host. A new certificate has the names of the last one, too. Raises MissingComponent without openssl,
    EndpointError when openssl fails or another monitor holds the lock, ConfigError when the farm's secrets cannot be
    written.
    """
    try:
        farm.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(farm):
            if not (farm.certificate.is_file() and farm.certificate_key.is_file()) or _ends_soon(farm.certificate):
                _make_authority(farm)
            known = _names_in(farm)
            wanted = tuple(dict.fromkeys((*known, *names)))
            if wanted != known or not lasts(_public(farm)):
                _make(farm, wanted)
            return Certificate(public=_public(farm).read_text("ascii"), private=_private(farm).read_text("ascii"))
    except OSError as error:
        raise ConfigError(
            f"cannot write the certificate below {farm.secrets} ({error.strerror}); check permissions and free space"
        ) from error


def _public(farm: FarmDir) -> Path:
    return farm.secrets / "endpoint.pem"


def _private(farm: FarmDir) -> Path:
    return farm.secrets / "endpoint.key"


@contextlib.contextmanager
def _alone(farm: FarmDir) -> Iterator[None]:
    """Let one monitor at a time make the certificate, where the file system knows locks.

    Raises EndpointError if another monitor takes longer than a minute.
    """
    until = time.monotonic() + _PATIENCE
    with (farm.secrets / "certificate.lock").open("w") as lock:
        while _is_locked(lock):
            if time.monotonic() > until:
                raise EndpointError(
                    f"another monitor has held {lock.name} for {_PATIENCE:g} s; end that monitor, or {_INSTEAD}"
                )
            time.sleep(0.1)
        yield


def _is_locked(lock: IO[str]) -> bool:
    """Return whether another process holds the lock; if not, take it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


def _names_in(farm: FarmDir) -> tuple[str, ...]:
    """Return the names of the existing certificate, from its first line; () if there is none, or no key."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        first, _, rest = _public(farm).read_text("ascii").partition("\n")
        if first.startswith("# ") and "BEGIN CERTIFICATE" in rest and _private(farm).is_file():
            return tuple(first[2:].split())
    return ()


def lasts(certificate: Path) -> bool:
    """Return whether a certificate can be read and does not end within 30 days."""
    return not _checked(certificate).returncode


def _ends_soon(authority: Path) -> bool:
    """Return whether the authority ends soon, the only reason to replace what clients have pinned.

    Raises EndpointError if openssl cannot tell.
    """
    done = _checked(authority)
    if done.returncode and "will expire" not in done.stdout:
        raise EndpointError(
            f"openssl cannot read {authority}: {done.complaint}; try again, restore the file, or remove it and give "
            "clients the new one"
        )
    return bool(done.returncode)


def _checked(certificate: Path) -> Completed:
    return _openssl("x509", "-in", str(certificate), "-noout", "-checkend", str(_SOON))


def _make_authority(farm: FarmDir) -> None:
    with _folder(farm) as made:
        config = made / "config"
        config.write_text(_AUTHORITY)
        _must("genpkey", *_CURVE, "-out", str(made / "key"))
        _must(
            *("req", "-x509", "-new", "-config", str(config), "-key", str(made / "key"), "-days", str(_DAYS)),
            *("-out", str(made / "pem")),
        )
        for left in (_public(farm), _private(farm)):  # the authority that signed them ends now
            left.unlink(missing_ok=True)
        write_whole(farm.certificate_key, (made / "key").read_bytes(), mode=0o600)
        write_whole(farm.certificate, (made / "pem").read_bytes(), mode=0o600)


def _make(farm: FarmDir, names: tuple[str, ...]) -> None:
    subjects = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names)
    with _folder(farm) as made:
        config = made / "config"
        config.write_text(_ENDPOINT.format(subjects=subjects))
        _must("genpkey", *_CURVE, "-out", str(made / "key"))
        _must("req", "-new", "-config", str(config), "-key", str(made / "key"), "-out", str(made / "request"))
        _must(
            *("x509", "-req", "-in", str(made / "request"), "-days", str(_DAYS), "-out", str(made / "pem")),
            *("-CA", str(farm.certificate), "-CAkey", str(farm.certificate_key)),
            *("-set_serial", str(secrets.randbits(63)), "-extfile", str(config), "-extensions", "ext"),
        )
        write_whole(_private(farm), (made / "key").read_bytes(), mode=0o600)
        write_whole(_public(farm), f"# {' '.join(names)}\n{(made / 'pem').read_text('ascii')}", mode=0o600)


@contextlib.contextmanager
def _folder(farm: FarmDir) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=farm.secrets, prefix=".made.") as name:  # mode 0700
        yield Path(name)


def _must(*words: str) -> None:
    done = _openssl(*words)
    if done.returncode:
        raise EndpointError(f"openssl cannot make a certificate for the endpoint: {done.complaint}; {_INSTEAD}")


def _openssl(*words: str) -> Completed:
    return run([find_program("openssl", remedy=f"install openssl, or {_INSTEAD}"), *words], timeout=30)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
