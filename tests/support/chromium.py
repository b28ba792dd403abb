"""Drives headless Chromium over its DevTools pipe: no driver, no package, no port."""

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from export.bundle.predict import make_server

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
PATIENCE_SECONDS = 240


ARTICLES = "[...document.querySelectorAll('article')]"
"""What is answered on a bundle's page, from above."""


class Chromium:
    """One browser with one page. requests: every address that a page asked for."""

    def __init__(self, profile: Path) -> None:
        path = next(filter(None, map(shutil.which, NAMES)), None)
        if path is None:
            pytest.skip(f"none of {', '.join(NAMES)} is installed")
        self._numbers, self.requests, self.problems = iter(range(1, 1_000_000)), [], []
        read, browser_write = os.pipe()
        browser_read, write = os.pipe()

        def take_pipes() -> None:  # Chromium expects them as 3 and 4
            first, second = os.dup(browser_read), os.dup(browser_write)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self._process = subprocess.Popen(
            [path, f"--user-data-dir={profile}", *FLAGS],
            preexec_fn=take_pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_read)
        os.close(browser_write)
        self._read, self._write, self._rest = read, write, b""
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(entry["targetId"] for entry in targets if entry["type"] == "page")
        self._session = None
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.send(f"{domain}.enable")

    _session: str | None = None

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium ended")
            self._rest += chunk
        line, self._rest = self._rest.split(b"\0", 1)
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(event["params"]["exceptionDetails"])
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(event["params"]["entry"]["text"])

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript, a promise is waited for, and return its value."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    @contextmanager
    def showing(self, folder: Path, expected: str = "ready") -> Iterator[str]:
        """Serve a bundle's page and open it, until it has checked itself and is ready or refused. Gives its address."""
        with make_server(folder) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://localhost:{server.server_port}/"
            try:
                self.send("Page.navigate", url=address)
                state = self.wait_for(
                    f"location.href === {json.dumps(address)} && document.readyState === 'complete' && "
                    "['ready', 'refused'].find((state) => document.documentElement.dataset.state === state)"
                )
                assert state == expected
                yield address
            finally:
                server.shutdown()

    def answers(self, count: int) -> list[dict[str, Any]]:
        """Wait until the page has so many answers and no question, and return them from above."""
        self.wait_for(f"{ARTICLES}.length === {count} && {ARTICLES}.every((one) => one.dataset.answer)")
        return list(map(json.loads, self.evaluate(f"{ARTICLES}.map((one) => one.dataset.answer)")))

    def wait_for(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not (value := self.evaluate(expression)) and time.monotonic() < end:
            time.sleep(0.05)
        if not value:
            raise RuntimeError(f"waited {PATIENCE_SECONDS} s for {expression}: {self.problems}")
        return value

    def choose(self, selector: str, paths: list[Path]) -> None:
        """Choose files in a file input, as a user does."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve()) for path in paths])

    def drop(self, paths: list[Path]) -> None:
        """Drop files and folders on the page, as a user does from a file manager."""
        data = {"items": [], "files": [str(path.resolve()) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)

    def screenshot(self, path: Path, width: int, height: int, dark: bool = False, mobile: bool = False) -> None:
        """Write a PNG of the page at a width, as high as it is."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(picture))

    def width_on_a_phone(self) -> int:
        """Return how wide the page is on a screen of 390 pixels; a wider one widens ``innerWidth``, too."""
        self.send("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
        width: int = self.evaluate("document.documentElement.scrollWidth")
        self.send("Emulation.clearDeviceMetricsOverride")
        return width

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
