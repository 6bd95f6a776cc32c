"""Fetches image URLs for inspection, without letting them reach what they should not.

Redirects are followed here, one checked target after another, and every failure becomes a refusal that names a reason
and nothing of the URL. Synchronous: call it through `asyncio.to_thread` where a loop runs. httpcore is loaded when a
fetcher is made.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from guardalign_guardrails.errors import FetchRefused, FetchUnavailable
from guardalign_guardrails.fetch.deadline import Deadline
from guardalign_guardrails.fetch.refusals import refusal
from guardalign_guardrails.fetch.target import Redirect, Target
from guardalign_guardrails.policy.fetch import FetchRules

_INSTALL: Final = 'Fetching image URLs needs httpcore: pip install "guardalign-guardrails[fetch]"'

# With the default of max_urls a batch takes no longer than one URL may.
_MAX_THREADS: Final = 16

# What headers may take on top of the image; framing of chunks is allowed as much again as the image.
_HEADER_BYTES: Final = 256 * 1024


class Fetcher:
    """Gets the bytes behind image URLs, by rules. Safe to share between threads."""

    def __init__(
        self,
        rules: FetchRules,
        *,
        ssl_context: ssl.SSLContext | None = None,
        resolve: Callable[[str, int], Iterable[str]] | None = None,
    ) -> None:
        """Load what is needed; connects to nothing.

        Args:
            rules: What may be fetched.
            ssl_context: Verifies servers; None for the system's and certifi's authorities.
            resolve: Host name and port → addresses as text, best first; None for the system's resolver. What it answers
                is checked all the same.

        Raises:
            FetchUnavailable: httpcore is not installed.
            ValueError: The context does not verify certificates and host names.
        """
        try:
            from guardalign_guardrails.fetch import connection, exchange
        except ImportError as error:
            raise FetchUnavailable(_INSTALL) from error
        if ssl_context and not (ssl_context.verify_mode == ssl.CERT_REQUIRED and ssl_context.check_hostname):
            raise ValueError("ssl_context must verify certificates and host names.")
        self._rules = rules
        self._connector = connection.Connector(rules, ssl_context, resolve)
        self._get = exchange.get

    @property
    def rules(self) -> FetchRules:
        """What may be fetched."""
        return self._rules

    def fetch(self, url: str, max_bytes: int | None = None) -> bytes:
        """Get the bytes behind one URL.

        Args:
            url: Absolute https URL.
            max_bytes: Most bytes to take, where the rules do not allow fewer.

        Returns:
            At least one byte. Whether they are an image is not checked.

        Raises:
            FetchRefused: They cannot be fetched; ``reason`` says why. Neither it nor what it chains to holds the URL.
        """
        outcome = self._outcome(url, max_bytes)
        if isinstance(outcome, FetchRefused):
            raise outcome
        return outcome

    def fetch_all(self, urls: Iterable[str], max_bytes: int | None = None) -> dict[str, bytes | FetchRefused]:
        """Get the bytes behind many URLs at once, each distinct one once.

        Args:
            urls: Absolute https URLs.
            max_bytes: Most bytes of each, where the rules do not allow fewer.

        Returns:
            For each distinct URL, in order of first appearance, its bytes or why there are none. Those beyond
            ``max_urls`` are refused as ``too_many_urls``.
        """
        distinct = list(dict.fromkeys(urls))
        fetched, left = distinct[: self._rules.max_urls], distinct[self._rules.max_urls :]
        outcomes: dict[str, bytes | FetchRefused] = {}
        if fetched:
            with ThreadPoolExecutor(min(len(fetched), _MAX_THREADS), "guardalign-fetch") as pool:
                outcomes.update(zip(fetched, pool.map(lambda url: self._outcome(url, max_bytes), fetched), strict=True))
        outcomes.update((url, refusal("too_many_urls")) for url in left)
        return outcomes

    def _outcome(self, url: str, max_bytes: int | None) -> bytes | FetchRefused:
        """The bytes, or a refusal made outside any ``except``, so that it chains to nothing."""
        limit = self._rules.max_bytes if max_bytes is None else min(max_bytes, self._rules.max_bytes)
        deadline = Deadline(self._rules.timeout_s)
        try:
            return self._follow(url, limit, deadline)
        except FetchRefused as error:
            reason = error.reason
        except Exception:  # noqa: BLE001 - whatever a hostile server provokes; its text may quote the URL
            reason = "url_timeout" if deadline.is_over else "url_unreachable"
        return refusal(reason)

    def _follow(self, url: str, limit: int, deadline: Deadline) -> bytes:
        backend = self._connector.backend(deadline, allowance=2 * limit + _HEADER_BYTES)
        target = Target.parse(url, self._rules)
        for _ in range(self._rules.max_redirects + 1):
            answer = self._get(target, backend, limit)
            if not isinstance(answer, Redirect):
                return answer
            target = target.follow(answer, self._rules)
        raise refusal("url_redirects")
