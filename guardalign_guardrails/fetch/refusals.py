"""The one place where URLs are refused.

Every refusal in this folder is made here, so that no message can ever carry a URL, a host or a byte of an answer: URLs
hold tokens.
"""

from __future__ import annotations

from typing import Final

from guardalign_guardrails.errors import FetchRefused

REMEDIES: Final = {
    "url_scheme": "Only https URLs are fetched; give an https URL or the image itself.",
    "url_malformed": "The URL is not well-formed; give an absolute one of usual length, without user name or blanks.",
    "url_host": "The URL's host is not one that may be fetched from; add it to fetch.allowed_hosts if it should be.",
    "url_port": "The URL's port is not one that may be fetched from; add it to fetch.ports if it should be.",
    "url_address": "The URL's host has an address that is not public; add a store of your own to fetch.private_hosts.",
    "url_unreachable": "The URL's host cannot be reached, or has no valid certificate, or breaks off; check the URL.",
    "url_status": "The URL's host did not answer with an image (status 200); check the URL.",
    "url_redirects": "The URL redirects too often; give the final URL or raise fetch.max_redirects.",
    "url_encoding": "The URL's host compresses what it sends although asked not to; give the image itself.",
    "url_empty": "The URL's host sent no bytes; check the URL.",
    "url_timeout": "The URL took too long; try again, give the image itself or raise fetch.timeout_s.",
    "too_large": "The image behind the URL has more bytes than allowed; shrink it or raise fetch.max_bytes.",
    "too_many_urls": "There are more URLs than fetched at once; send fewer or raise fetch.max_urls.",
}
"""What to do about each reason."""


def refusal(reason: str) -> FetchRefused:
    """The error for a reason, with the remedy and nothing else."""
    return FetchRefused(reason, REMEDIES[reason])
