"""Secrets in files: made once, read by their owner alone, and in no text."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exatrkx_hpc.base.credentials import CredentialFiles, Credentials, make_secret, read_secret
from exatrkx_hpc.base.errors import ConfigError

SECRET = "s" * 40


def secret_file(path: Path, text: str = SECRET, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_secret_is_made_once_for_its_owner_alone(tmp_path):
    path = tmp_path / "secrets" / "token"
    first = make_secret(path)
    assert make_secret(path) == read_secret(path) == first and len(first) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["token"]


def test_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        make_secret(tmp_path / "secrets" / "token")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "secrets" / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


def test_programs_that_make_it_at_the_same_time_agree(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: make_secret(tmp_path / "secrets" / "token"), range(64)))
    assert len(made) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    path = secret_file(tmp_path / "token", mode=mode)
    with pytest.raises(ConfigError, match=rf"{path} is open to other users \(mode {mode:04o}\)") as refused:
        read_secret(path)
    assert SECRET not in str(refused.value)


def test_a_file_of_another_user_is_refused(tmp_path, monkeypatch):
    path = secret_file(tmp_path / "token")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        read_secret(path)


@pytest.mark.parametrize("text", ["", "short", "a" * 15, "two words and more of them", 'x" 1; default "1', "é" * 20])
def test_a_file_without_a_secret_is_refused_without_showing_its_content(tmp_path, text):
    with pytest.raises(ConfigError, match=r"holds no secret .*; copy it again, or remove the file") as refused:
        read_secret(secret_file(tmp_path / "token", text))
    assert not text or text not in str(refused.value)


def test_a_missing_file_a_folder_and_a_pipe_are_one_line_each(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match=str(path)):
            read_secret(path)


def test_no_text_of_a_value_has_the_secret(tmp_path):
    secret_file(tmp_path / "token")
    credentials = CredentialFiles(token=tmp_path / "token").read()
    assert credentials.headers == {"authorization": f"Bearer {SECRET}"}
    assert credentials.metadata == (("authorization", f"Bearer {SECRET}"),)
    assert SECRET not in repr(credentials) + str(credentials)
    assert (Credentials().headers, Credentials().metadata) == ({}, ())


def test_a_certificate_must_be_one(tmp_path):
    (tmp_path / "no.pem").write_text("x")
    for path in (tmp_path / "no.pem", tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=str(path)):
            CredentialFiles(certificate=path).read()
