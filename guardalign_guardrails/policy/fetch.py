"""From where images given as URLs may be fetched and what that may cost. Data only.

Apart from the fetching so that a policy file can be read and checked without any HTTP package.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from guardalign_guardrails.policy.hosts import is_address, normalise


class FetchRules(BaseModel):
    """From where images may be fetched and what that may cost. Only https, whatever the rules say.

    Attributes:
        allowed_hosts: Host names, or ``*.example.org`` for every name below ``example.org`` (not itself); None for any
            public host.
        private_hosts: Hosts of your own (a media store) that may have private addresses and use any port. They need not
            be in ``allowed_hosts``. Users who may send image URLs can make the app read from them.
        ports: Ports that may be used.
        max_bytes: Size of one image.
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
