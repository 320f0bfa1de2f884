"""A real browser for tests: headless Chromium, spoken to over its debugging pipe, without any package for it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROGRAM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)

_AS_3_AND_4 = """
import fcntl, os, sys
above = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(above[0], 3), os.dup2(above[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A tab. `errors`: what its scripts threw and its console complained of; `requests`: every address that it asked for."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest, self._last = to_browser, os.fdopen(from_browser, "rb"), b"", 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._send(f"{domain}.enable")

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session := getattr(self, "_session", None):
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = self._from.read1()
            if not read:
                raise RuntimeError("the browser has ended")
            self._rest += read
        raw, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(raw)
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"])[:2000])
            case "Log.entryAdded" if message["params"]["entry"]["level"] in ("error", "warning"):
                self.errors.append(message["params"]["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.errors.append(str(message["params"]["args"]))
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            case "Page.loadEventFired":
                self._loaded = True
        return message

    def look(self, url: str, width: int = 1440, height: int = 900, *, dark: bool = False, phone: bool = False) -> None:
        """Opens an address in a window of this size, and waits until it is loaded."""
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme, {"name": "prefers-reduced-motion", "value": "reduce"}])
        self._send("Page.navigate", url="about:blank")
        self._loaded = False
        self._send("Page.navigate", url=url)
        while not self._loaded:
            self._receive()
        self.wait_for("document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of an expression, or of what its promise brings."""
        found = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until a condition holds; for ever, which the test's own limit ends."""
        self.run(f"(async () => {{ while (!({condition})) await new Promise((done) => setTimeout(done, 20)); }})()")

    def press(self, key: str, text: str = "") -> None:
        """A key goes down and up."""
        codes = {"Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9, "End": 35, "Home": 36}
        code = codes.get(key, ord(key[0].upper()))
        shown = text or {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        down = {"type": "keyDown", "key": key, "windowsVirtualKeyCode": code} | ({"text": shown} if shown else {})
        self._send("Input.dispatchKeyEvent", **down)
        self._send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def point_at(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self._send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, *, whole: bool = False) -> bytes:
        """PNG."""
        return base64.b64decode(self._send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])


@contextmanager
def browser() -> Iterator[Page]:
    """A browser with one tab; its process has ended after the block."""
    assert PROGRAM
    for_it, ours = os.pipe(), os.pipe()  # its descriptors 3, which it reads, and 4
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        flags += ["--no-first-run", "--disable-dev-shm-usage", "--disable-extensions", "--hide-scrollbars"]
        command = [sys.executable, "-c", _AS_3_AND_4, str(for_it[0]), str(ours[1]), PROGRAM, *flags]
        process = subprocess.Popen(command, pass_fds=(for_it[0], ours[1]), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(for_it[0])
        os.close(ours[1])
        try:
            yield Page(for_it[1], ours[0])
        finally:
            process.terminate()
            process.wait(timeout=60)
            os.close(for_it[1])


@contextmanager
def opened(tab: Page, url: str, *, own: tuple[str, ...] = ("file:", "data:", "about:")) -> Iterator[Page]:
    """The tab with a page; whatever a test does, the page makes no error and asks for nothing but URLs of its own."""
    tab.errors.clear()
    tab.requests.clear()
    tab.look(url)
    yield tab
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith(own)] == []
