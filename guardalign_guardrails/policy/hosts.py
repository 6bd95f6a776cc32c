"""One spelling for every host, so that lists, look-ups and certificates speak of the same one.

Strict on purpose: a host that two programs could read differently (`127.1`, `0x7f000001`, `2130706433`, a zone id,
escapes) is no host here, even where the system's resolver would take it. Nothing is looked up.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_MAX_LENGTH: Final = 253

# What a resolver may take for (a part of) an IPv4 address when it stands last.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Python's codec is IDNA 2003, which turns these into other letters or nothing. Since 2008 they are letters of their
# own, so the name could belong to another owner.
_DEVIATIONS: Final = frozenset("ßẞς\u200c\u200d")


def normalise(host: str) -> str:
    """A host name in lower-case ASCII without final dot, or an address in its shortest spelling without brackets.

    Args:
        host: A name, also an international one, an IPv4 address or an IPv6 address with or without brackets.

    Raises:
        ValueError: It is none of these. The text says what is wrong and does not quote the host.
    """
    if ":" in host or host.startswith("["):
        return _ipv6(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    name = _ascii(host).lower().removesuffix(".")
    if len(name) > _MAX_LENGTH or not _NAME.fullmatch(name):
        raise ValueError("not a host name")
    if _NUMBER.fullmatch(name.rpartition(".")[2]) and not is_address(name):
        raise ValueError("an address in an unusual spelling")
    return name


def is_address(host: str) -> bool:
    """Whether a normalised host is an address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _ascii(host: str) -> str:
    if host.isascii():
        return host
    # Checked before encoding, whose time grows faster than the length.
    if len(host) > _MAX_LENGTH or not _DEVIATIONS.isdisjoint(host):
        raise ValueError("an international name that has to be given in its xn-- spelling")
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError("not a host name") from None


def _ipv6(host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        raise ValueError("not a host name or address") from None
    if address.scope_id is not None:
        raise ValueError("an address with a zone")
    return str(address)
