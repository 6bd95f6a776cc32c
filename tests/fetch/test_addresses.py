"""Addresses: nothing that is not a public host's is ever dialled, in whatever spelling it comes."""

from __future__ import annotations

import ipaddress
import ssl

import httpcore
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from guardalign_guardrails.errors import FetchRefused
from guardalign_guardrails.fetch import Fetcher, FetchRules
from guardalign_guardrails.fetch.addresses import check, is_public

TLS = ssl.create_default_context()

PUBLIC = [
    "8.8.8.8",
    "93.184.216.34",
    "1.1.1.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "64:ff9b::808:808",
]

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:0:5ef5:79fd:0:0:0:1",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]

ODD = [
    "fe80::1%eth0",
    "2606:4700::1111%1",
    "127.1",
    "0x7f000001",
    "2130706433",
    "0177.0.0.1",
    "",
    "localhost",
    "8.8.8.8 ",
]
ODD += ["8.8.8.8/32", 2130706433, b"\x08\x08\x08\x08", None]

NETWORKS = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")]
NETWORKS += [ipaddress.ip_network(text) for text in ("127.0.0.0/8", "100.64.0.0/10", "224.0.0.0/4", "::ffff:0:0/96")]
NETWORKS += [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "2001::/32", "fc00::/7", "fe80::/10")]


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_may_be_connected_to(text):
    assert check(text, may_be_private=False) == ipaddress.ip_address(text)


@pytest.mark.parametrize("text", NOT_PUBLIC + ODD)
def test_any_other_address_may_not(text):
    with pytest.raises(FetchRefused) as caught:
        check(text, may_be_private=False)
    assert caught.value.reason == "url_address"


@pytest.mark.parametrize(
    "text", [*PUBLIC, "127.0.0.1", "10.1.2.3", "172.20.0.1", "192.168.0.1", "100.64.0.1", "::1", "fd00::1"]
)
def test_a_store_of_ones_own_may_have_a_private_address(text):
    assert str(check(text, may_be_private=True)) == text


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",
        "168.63.129.16",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::ffff:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "2002:7f00:1::1",
        "fd00::1%1",
        "fe80::1",
        "ff02::1",
        *ODD,
    ],
)
def test_but_not_one_where_metadata_services_live_or_that_names_no_single_host(text):
    with pytest.raises(FetchRefused):
        check(text, may_be_private=True)


@pytest.fixture
def dialled(monkeypatch):
    addresses = []

    def dial(_, host, port, **options):
        addresses.append(host)
        raise httpcore.ConnectError("connection refused")

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", dial)
    return addresses


def reachable(address):
    """What the standard library says, told where an address holds another one."""
    inner = (
        getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or getattr(address, "teredo", None)
    )
    if inner:
        return False
    if address in ipaddress.ip_network("64:ff9b::/96"):
        return reachable(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


addresses = st.one_of(st.ip_addresses(), *(st.ip_addresses(network=network) for network in NETWORKS))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(addresses, min_size=1, max_size=4), st.booleans())
@example([ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("127.0.0.1")], False)
def test_nothing_is_dialled_unless_every_answer_is_public(dialled, found, is_literal):
    dialled.clear()
    # Of several answers as a name, of one in the URL itself.
    literal = f"[{found[0]}]" if found[0].version == 6 else str(found[0])
    url = f"https://{literal}/" if is_literal else "https://img.example.org/"
    found = found[:1] if is_literal else found
    fetcher = Fetcher(FetchRules(), ssl_context=TLS, resolve=lambda host, port: map(str, found))
    with pytest.raises(FetchRefused) as caught:
        fetcher.fetch(url)
    if all(is_public(address) for address in found):
        assert dialled == [str(address) for address in dict.fromkeys(found)]
        assert caught.value.reason == "url_unreachable"
    else:
        assert dialled == []
        assert caught.value.reason == "url_address"
    assert all(reachable(ipaddress.ip_address(address)) for address in dialled)
