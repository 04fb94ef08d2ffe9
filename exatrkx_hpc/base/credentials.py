"""Secrets in files that only their owner may read, and what a client shows to an endpoint."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import ConfigError

#: Characters of a secret: those of a Bearer token (RFC 6750) that need no quotes in nginx's or Triton's configuration.
_SECRET: Final = re.compile(r"[A-Za-z0-9._~+/-]{16,512}")
#: Random bytes of a new secret; it is written as twice as many hexadecimal digits.
_BYTES: Final = 32
#: The most bytes to read of a file that should hold a secret.
_LONGEST: Final = 1024


def read_secret(path: Path) -> str:
    """Return the secret in `path`.

    Raises ConfigError if the file is missing, belongs to another user, is open to others, or holds no secret. No
    message contains the file's content.
    """
    text = read_private(path).decode("ascii", errors="replace").strip()
    if not _SECRET.fullmatch(text):
        raise ConfigError(
            f"{path} holds no secret of 16 to 512 letters, digits, '.', '_', '~', '+', '/' or '-'; copy it again, or "
            "remove the file if it is the farm's own: the next command makes a new secret"
        )
    return text


def read_private(path: Path) -> bytes:
    """Return the first 1024 bytes of a file that only its owner may read, such as a key; errors as `read_secret`."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(
            f"cannot read the secret {path} ({error.strerror}); check the path, or ask the owner of the farm"
        ) from error
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(f"{path} is not a file; name the file that holds the secret")
        if facts.st_uid != os.geteuid():
            raise ConfigError(f"{path} belongs to another user; copy the secret to a file of your own with mode 0600")
        if facts.st_mode & 0o077:
            mode = stat.S_IMODE(facts.st_mode)
            raise ConfigError(f"{path} is open to other users (mode {mode:04o}); replace the secret, then 'chmod 600'")
        return os.read(handle, _LONGEST)
    finally:
        os.close(handle)


def make_secret(path: Path) -> str:
    """Return the secret in `path`; make a random one, in a folder of mode 0700, if the file does not exist.

    Of several programs that make it at the same time, one wins, and all return its secret. Raises ConfigError as
    `read_secret`, and if the file cannot be written.
    """
    if not os.path.lexists(path):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_once(path, secrets.token_hex(_BYTES) + "\n")
        except OSError as error:
            raise ConfigError(f"cannot write {path} ({error.strerror}); check permissions and free space") from error
    return read_secret(path)


def _write_once(path: Path, text: str) -> None:
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)  # unlike a rename, a link never replaces a file
    finally:
        Path(aside).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a client shows and trusts: the farm's token, and the certificate (PEM) of an endpoint with TLS.

    An empty token sends none; an empty certificate means no TLS. `server_key` are the headers with which a program of
    the farm reaches a server without the balancer. None of them appears in the value's text.
    """

    token: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    server_key: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request, HTTP or gRPC."""
        return dict(self.server_key) | ({"authorization": f"Bearer {self.token}"} if self.token else {})

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The same as metadata of a gRPC call."""
        return tuple(self.headers.items())


@dataclass(frozen=True, kw_only=True)
class CredentialFiles:
    """The files with a client's credentials. Their paths may be shown and passed on; their content may not."""

    token: Path | None = None
    certificate: Path | None = None

    def read(self) -> Credentials:
        """Return the credentials; raises ConfigError if a file cannot be used."""
        token = read_secret(self.token) if self.token is not None else ""
        return Credentials(token=token, certificate=_certificate(self.certificate))


#: No token and no TLS.
NO_FILES: Final = CredentialFiles()


def _certificate(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not PEM"
        raise ConfigError(f"cannot read the certificate {path} ({why}); check the path") from error
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise ConfigError(f"{path} has no certificate in PEM form; name the endpoint's certificate")
    return text
