"""The text of a URL → what to connect to and ask for, checked against the rules.

The only reader of URLs in this folder: redirects pass through it like the first URL. What is connected to is built from
the parts found here, never from the text, so no second parser can read the text another way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from guardalign_guardrails.fetch.refusals import refusal
from guardalign_guardrails.policy.fetch import FetchRules
from guardalign_guardrails.policy.hosts import normalise

MAX_LENGTH: Final = 8192
"""Longest URL in characters; signed URLs of the large stores have up to about 2,000."""

_AUTHORITY: Final = re.compile(r"(?P<host>\[[^][]*\]|[^][:@]+)(:(?P<port>[0-9]{0,5}))?")
_DEFAULT_PORT: Final = 443

# Characters that stand for themselves in a path or query; '%' because what is escaped already stays as it is.
_KEPT: Final = "%/?:@!$&'()*+,;=~[]"


class Redirect(NamedTuple):
    """An answer that says to look elsewhere.

    Attributes:
        location: Value of the ``location`` header, absolute or relative, not checked.
    """

    location: bytes


@dataclass(frozen=True, repr=False)
class Target:
    """What a URL points to; its text form is left out because URLs hold tokens.

    Attributes:
        host: As `hosts.normalise` writes it.
        port: Port to connect to.
        path: Path and query in ASCII, beginning with a slash.
    """

    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as a URL or the ``host`` header writes them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT else f"{host}:{self.port}"

    @classmethod
    def parse(cls, url: str, rules: FetchRules) -> Target:
        """Read a URL and check all of it that can be checked without a look-up.

        Raises:
            FetchRefused: ``url_scheme``, ``url_malformed``, ``url_host`` or ``url_port``.
        """
        if not isinstance(url, str):
            raise refusal("url_malformed")
        # The scheme first, so that a data URL of megabytes is refused for its scheme and not for its length.
        if url[:16].partition(":")[0].lower() != "https":
            raise refusal("url_scheme")
        _check_characters(url)
        try:
            parts = urlsplit(url)
        except ValueError:
            raise refusal("url_malformed") from None
        match = _AUTHORITY.fullmatch(parts.netloc)
        if match is None:
            raise refusal("url_malformed")
        try:
            host = normalise(match["host"])
        except ValueError:
            raise refusal("url_malformed") from None
        port = int(match["port"] or _DEFAULT_PORT)
        if not rules.allows_host(host):
            raise refusal("url_host")
        if not rules.allows_port(host, port):
            raise refusal("url_port")
        path = quote(parts.path, safe=_KEPT) or "/"
        return cls(host, port, f"{path}?{quote(parts.query, safe=_KEPT)}" if parts.query else path)

    def follow(self, redirect: Redirect, rules: FetchRules) -> Target:
        """Where a redirect from here leads, read and checked like any other URL.

        Raises:
            FetchRefused: As `parse` does.
        """
        try:
            text = redirect.location.decode()
            # Before joining, which would silently drop tabs and line breaks.
            _check_characters(text)
            url = urljoin(f"https://{self.authority}{self.path}", text)
        except ValueError:
            raise refusal("url_malformed") from None
        return self.parse(url, rules)


def _check_characters(url: str) -> None:
    """Refuse what programs disagree about: blanks, control and invisible characters, backslashes, absurd length."""
    if len(url) > MAX_LENGTH or not url.isprintable() or " " in url or "\\" in url:
        raise refusal("url_malformed")
