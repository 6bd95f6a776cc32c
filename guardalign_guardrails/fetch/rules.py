"""Which URLs may be fetched and what that may cost, and the one way to say no to them.

Every refusal in this folder is made here, so that no message can ever carry a URL, a host or a byte of an answer: URLs
hold tokens. Apart from the fetching so that a policy file can be read and checked without any HTTP package.
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from guardalign_guardrails.errors import FetchRefused
from guardalign_guardrails.fetch.hosts import is_address, normalise

REMEDIES: Final = {
    "url_scheme": "Only https URLs are fetched; give an https URL or the picture itself.",
    "url_malformed": "The URL is not well-formed; give an absolute one of usual length, without user name or blanks.",
    "url_host": "The URL's host is not one that may be fetched from; add it to fetch.allowed_hosts if it should be.",
    "url_port": "The URL's port is not one that may be fetched from; add it to fetch.ports if it should be.",
    "url_address": "The URL's host has an address that is not public; add a store of your own to fetch.private_hosts.",
    "url_unreachable": "The URL's host cannot be reached, or has no valid certificate, or breaks off; check the URL.",
    "url_status": "The URL's host did not answer with a picture (status 200); check the URL.",
    "url_redirects": "The URL redirects too often; give the final URL or raise fetch.max_redirects.",
    "url_encoding": "The URL's host compresses what it sends although asked not to; give the picture itself.",
    "url_empty": "The URL's host sent no bytes; check the URL.",
    "url_timeout": "The URL took too long; try again, give the picture itself or raise fetch.timeout_s.",
    "too_large": "The picture behind the URL has more bytes than allowed; shrink it or raise fetch.max_bytes.",
    "too_many_urls": "There are more URLs than fetched at once; send fewer or raise fetch.max_urls.",
}
"""What to do about each reason."""


class FetchRules(BaseModel):
    """From where images may be fetched and what that may cost. Only https, whatever the rules say.

    Attributes:
        allowed_hosts: Host names, or ``*.example.org`` for every name below ``example.org`` (not itself); None for any
            public host.
        private_hosts: Hosts of your own (a media store) that may have private addresses and use any port. They need not
            be in ``allowed_hosts``. Whoever may send an image URL can make the app read from them.
        ports: Ports that may be used.
        max_bytes: Size of one picture.
        timeout_s: Seconds for one URL: name look-up, connection, TLS, headers, body and all redirects together.
        max_redirects: How many redirects of one URL are followed.
        max_urls: How many distinct URLs of one batch are fetched; the rest is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowed_hosts: tuple[str, ...] | None = None
    private_hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = Field(default=(443,), min_length=1)
    max_bytes: int = Field(default=20 * 1024 * 1024, gt=0)
    timeout_s: float = Field(default=10.0, gt=0, le=3600, allow_inf_nan=False)
    max_redirects: int = Field(default=3, ge=0, le=20)
    max_urls: int = Field(default=16, gt=0)

    @field_validator("allowed_hosts")
    @classmethod
    def _allowed_hosts_are_names(cls, hosts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if hosts is None else tuple(dict.fromkeys(map(_entry, hosts)))

    @field_validator("private_hosts")
    @classmethod
    def _private_hosts_are_single(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if any(host.startswith("*") for host in hosts):
            raise ValueError("name each private host in full; '*' is for allowed_hosts")
        return tuple(dict.fromkeys(map(_entry, hosts)))

    @field_validator("ports")
    @classmethod
    def _ports_are_ports(cls, ports: tuple[int, ...]) -> tuple[int, ...]:
        if not all(0 < port < 65536 for port in ports):
            raise ValueError("ports lie between 1 and 65535")
        return ports

    def allows_host(self, host: str) -> bool:
        """Whether a host, as `hosts.normalise` writes it, may be fetched from."""
        if self.allowed_hosts is None or host in self.private_hosts:
            return True
        return any(
            host.endswith(entry[1:]) if entry.startswith("*.") else host == entry for entry in self.allowed_hosts
        )

    def allows_port(self, host: str, port: int) -> bool:
        """Whether a port of an allowed host may be used."""
        return port in self.ports or (host in self.private_hosts and 0 < port < 65536)


def refusal(reason: str) -> FetchRefused:
    """The error for a reason, with the remedy and nothing else."""
    return FetchRefused(reason, REMEDIES[reason])


def _entry(entry: str) -> str:
    below = entry.startswith("*.")
    try:
        host = normalise(entry[2:] if below else entry)
    except ValueError as error:
        raise ValueError(
            f"{entry!r}: {error}; give hosts such as img.example.org or *.example.org, without scheme, port or path"
        ) from None
    if below and is_address(host):
        raise ValueError(f"{entry!r}: there are no names below an address")
    return f"*.{host}" if below else host
