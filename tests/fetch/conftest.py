"""A TLS server on the loopback and a world in which every host leads to it."""

from __future__ import annotations

import ssl

import httpcore
import pytest
import trustme
from tls_server import Network, TlsServer, reply

from guardalign_guardrails.fetch import Fetcher, FetchRules

BODY = b"\x89PNG an image's bytes"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def trust(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def server(authority):
    with TlsServer(authority, {"/a.png": reply(BODY)}).running() as running:
        yield running


@pytest.fixture
def network(server, monkeypatch):
    """The world as `Network` has it; a test that does not ask for it dials the real loopback."""
    network = Network(server)
    monkeypatch.setattr(
        httpcore.SyncBackend, "connect_tcp", lambda _, *place, **options: network.dial(*place, **options)
    )
    return network


@pytest.fixture
def fetcher_of(network, trust):
    def make(**rules):
        return Fetcher(FetchRules(**rules), ssl_context=trust, resolve=network.resolve)

    return make
