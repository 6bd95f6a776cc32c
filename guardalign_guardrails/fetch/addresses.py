"""Which addresses may be connected to. Knows no names and no URLs.

`ipaddress.is_global` is asked too, but does not decide alone: its tables differ between Python versions, and it calls
some addresses global that lead elsewhere (multicast, tunnels that hold an IPv4 address, a cloud's own service).
"""

from __future__ import annotations

import ipaddress
from typing import Final, TypeAlias

from guardalign_guardrails.fetch.refusals import refusal

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_CLOSED_IPV4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT; also a cloud's metadata service
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's platform service, inside every virtual network
            "169.254.0.0/16",  # link-local; metadata services
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    )
)

# Every global unicast address of today begins so. Outside lie loopback, mapped and compatible IPv4, private, link-local
# and multicast addresses.
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_CLOSED_IPV6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "3fff::/20",  # documentation
        ),
    )
)

# The last 32 bits are the IPv4 address that is reached; how hosts without IPv4 reach those without IPv6.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

_PRIVATE_IPV4: Final = tuple(
    map(ipaddress.IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
)
_PRIVATE_IPV6: Final = tuple(map(ipaddress.IPv6Network, ("::1/128", "fc00::/7")))


def check(answer: str, *, may_be_private: bool) -> Address:
    """The address a resolver answered, if it may be connected to.

    Args:
        answer: An address as text; zone ids and anything odd are refused.
        may_be_private: Whether private networks and the machine itself are fine too. Link-local addresses, where
            metadata services live, never are.

    Raises:
        FetchRefused: ``url_address``.
    """
    try:
        # Of text only: `ip_address` reads numbers and bytes as packed addresses.
        address = ipaddress.ip_address(str(answer))
    except ValueError:
        raise refusal("url_address") from None
    if is_public(address) or (may_be_private and _is_private(address)):
        return address
    raise refusal("url_address")


def is_public(address: Address) -> bool:
    """Whether an address is a host's on the public internet, whatever way it is reached."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in network for network in _CLOSED_IPV4)
    if address.scope_id is not None:
        return False
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _GLOBAL_UNICAST and address.is_global and not any(address in network for network in _CLOSED_IPV6)


def _is_private(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return any(address in network for network in _PRIVATE_IPV4)
    return address.scope_id is None and any(address in network for network in _PRIVATE_IPV6)
