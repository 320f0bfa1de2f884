"""An S3 server on this machine, behind a proxy that can spoil what passes; each test has a bucket's folder of its own."""

from __future__ import annotations

import logging
import os
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from manifests.bucket_store import TIMEOUT_VARIABLE, put
from manifests.location import Url
from tests.buckets.proxy import FaultProxy
from tests.faults.conftest import five, uninterrupted, zygote

__all__ = ["five", "uninterrupted", "zygote"]

_numbers = count()


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    from moto.server import ThreadedMotoServer  # takes a second

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")).close()
    yield port
    server.stop()


@pytest.fixture(scope="session")
def _proxy(s3_port: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_port)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """The way to the store, for this process and those that it starts."""
    _proxy.forget()
    _proxy.latency_s = 0.0
    settings = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ENDPOINT_URL": _proxy.url, TIMEOUT_VARIABLE: "20"}.items():
        monkeypatch.setenv(name, value)
    return _proxy


@pytest.fixture
def bucket(proxy: FaultProxy) -> Url:
    """A folder in the bucket that nobody else has."""
    return Url(f"s3://bucket/test-{next(_numbers)}")


def settings() -> dict[str, str]:
    """What a process finds the store by, for one that was started before the test."""
    return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "BUCKET_"))}


def upload(folder: Path, url: Url) -> Url:
    """Copies a folder's files, and returns the URL."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            put(url / path.relative_to(folder), path.read_bytes())
    return url
