"""Ports of this machine: which are free, and which are a user's own."""

from __future__ import annotations

import os
import socket

import pytest

from exatrkx_hpc.base.news import News
from exatrkx_hpc.base.ports import chosen_port, free_port, port_trouble, user_port

WHAT = ("http", "grpc", "prometheus")


def test_users_of_one_machine_have_ports_of_their_own():
    taken = [user_port(what, uid) for uid in range(70_000, 74_000) for what in WHAT]
    assert len(set(taken)) == len(taken)
    assert (min(taken), max(taken)) == (20_000, 31_999), "below those that the kernel gives to connections"
    assert user_port("grpc", 70_001) == user_port("grpc", 70_001)


@pytest.mark.parametrize("what", WHAT)
def test_a_port_of_ones_own_makes_room_when_it_is_taken(what):
    said: list[News] = []
    own = user_port(what, os.getuid())
    assert chosen_port("127.0.87.1", "user", what, said.append) == own
    assert said == []
    with socket.socket() as other:
        other.bind(("127.0.87.1", own))
        other.listen()
        found = chosen_port("127.0.87.1", "user", what, said.append)
    assert found != own and port_trouble("127.0.87.1", found) is None
    assert [str(news) for news in said] == [
        f"{what} port: {own} is not available (Address already in use); using {found} this time"
    ]


def test_any_port_is_the_last_one_if_it_is_free():
    said: list[News] = []
    last = free_port("127.0.87.1")
    assert chosen_port("127.0.87.1", 0, "grpc", said.append, last=last) == last
    assert chosen_port("127.0.87.1", 9191, "grpc", said.append, last=last) == 9191 and said == []
    with socket.socket() as other:
        other.bind(("127.0.87.1", last))
        other.listen()
        found = chosen_port("127.0.87.1", 0, "grpc", said.append, last=last)
    assert port_trouble("127.0.87.1", found) is None
    assert [(news.own, news.port) for news in said] == [(last, found)]


def test_a_user_whose_own_port_is_taken_has_the_last_one():
    own, last = user_port("grpc", os.getuid()), free_port("127.0.87.1")
    assert chosen_port("127.0.87.1", "user", "grpc", last=last) == own
    with socket.socket() as other:
        other.bind(("127.0.87.1", own))
        other.listen()
        assert chosen_port("127.0.87.1", "user", "grpc", last=last) == last


def test_a_port_that_was_named_is_kept_and_0_is_any():
    assert chosen_port("127.0.87.1", 9191, "grpc") == 9191
    assert port_trouble("127.0.87.1", chosen_port("127.0.87.1", 0, "grpc")) is None
    assert port_trouble("127.0.87.1", free_port("127.0.87.1")) is None
