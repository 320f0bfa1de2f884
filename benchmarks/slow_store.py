"""A store that answers late, in a process of its own: an S3 server of the tests behind their proxy, both on this machine."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from manifests.location import Url
from tests.buckets.proxy import FaultProxy


class SlowStore:
    """`bucket`: an empty one. This process's environment is set so that it is found."""

    bucket = Url("s3://bucket")

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        settings = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
        os.environ |= settings | {"AWS_ENDPOINT_URL": self._answer()}

    def answer_after(self, latency_ms: float) -> None:
        """From now on, each request."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{latency_ms}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def slow_store() -> Iterator[SlowStore]:
    """While the block runs."""
    command = [sys.executable, "-m", "benchmarks.slow_store"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield SlowStore(process)
        finally:
            process.kill()


def main() -> None:
    """Says where it listens, then takes latencies in ms, one a line."""
    from moto.server import ThreadedMotoServer  # takes a second

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")).close()
    proxy = FaultProxy(port)
    print(proxy.url, flush=True)
    for line in sys.stdin:
        proxy.latency_s = float(line) / 1000
        print("set", flush=True)


if __name__ == "__main__":
    main()
