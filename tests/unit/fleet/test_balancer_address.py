"""The address for `balancer.host = "internal"`."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from exatrkx_hpc.base.news import News
from exatrkx_hpc.fleet.balancer import address
from exatrkx_hpc.fleet.balancer.address import INTERNAL, listen_host


def test_any_other_host_stays():
    assert listen_host("127.0.0.1") == "127.0.0.1"
    assert listen_host("login01", ["nid001"]) == "login01"


def test_it_is_the_address_towards_a_node_or_of_this_machine(monkeypatch):
    told: list[News] = []
    monkeypatch.setattr(address, "_source_towards", {"nid001": "", "nid002": "10.1.0.4", "192.0.2.1": ""}.get)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.2.0.4")
    assert listen_host(INTERNAL, ["nid001", "nid002"], told.append) == "10.1.0.4"
    assert listen_host(INTERNAL, ["nid001"], told.append) == listen_host(INTERNAL, (), told.append) == "10.2.0.4"
    assert told == []


def test_a_name_that_means_loopback_is_passed_over(monkeypatch):
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    monkeypatch.setattr(address, "_source_towards", lambda node: "10.3.0.4" if node == "192.0.2.1" else "127.0.0.1")
    assert listen_host(INTERNAL, ["nid001"]) == "10.3.0.4"


def test_a_machine_without_an_address_listens_on_all_and_says_so(monkeypatch):
    def unknown(name: str) -> str:
        raise OSError

    told: list[News] = []
    monkeypatch.setattr(socket, "gethostbyname", unknown)
    monkeypatch.setattr(address, "_source_towards", lambda node: "")
    assert listen_host(INTERNAL, ["nid001"], told.append) == "0.0.0.0"
    assert [news.code for news in told] == ["address-unknown"] and "balancer.host" in str(told[0])


def test_on_this_machine_it_is_an_address():
    assert ip_address(listen_host(INTERNAL)).version == 4
    assert address._source_towards("127.0.0.5").startswith("127.")
    assert address._source_towards("no such host !") == ""
