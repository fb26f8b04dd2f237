"""NIXL over TCP, which is there on every machine."""

import pytest


@pytest.fixture(autouse=True)
def over_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """As between two hosts: on one host UCX would copy from process to process."""
    monkeypatch.setenv("UCX_TLS", "tcp")
