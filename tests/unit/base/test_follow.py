"""A log is followed by bytes: characters that a read cuts, bytes that are no text, and files that begin anew."""

from __future__ import annotations

from exatrkx_hpc.base.follow import Follower


def test_half_of_a_character_waits_for_its_other_half(tmp_path):
    log = tmp_path / "log"
    data = "φ/π: 1 µm\n".encode()
    follower, found = Follower(log), ""
    for end in range(len(data) + 1):
        log.write_bytes(data[:end])
        found += follower.read()
    assert found == "φ/π: 1 µm\n"


def test_bytes_that_are_no_text_shift_nothing(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\xff\xfe\x00 garbage\n")
    follower = Follower(log)
    assert follower.read() == "\ufffd\ufffd\x00 garbage\n"
    with log.open("ab") as file:
        file.write(b"next\n")
    assert follower.read() == "next\n" and follower.read() == ""


def test_a_file_that_begins_anew_is_read_from_its_start(tmp_path):
    log = tmp_path / "log"
    log.write_text("a long first life\n")
    follower = Follower(log)
    follower.read()
    log.write_text("second\n")
    assert follower.read() == "second\n"
    log.rename(tmp_path / "log.1")
    assert follower.read() == "", "a file that is missing is waited for"
    log.write_text("third life, longer than the second\n")
    assert follower.read() == "third life, longer than the second\n"


def test_it_begins_at_a_place(tmp_path):
    log = tmp_path / "log"
    log.write_bytes("µ old\n".encode() + b"new\n")
    assert Follower(log, place=len("µ old\n".encode())).read() == "new\n"
