"""A real browser, Debian's chromium without a screen, spoken to over its DevTools pipe: JSON messages that end in a
NUL, to its descriptor 3 and from its descriptor 4. No driver, no port.

Protocol: chromedevtools.github.io/devtools-protocol; the pipe: --remote-debugging-pipe.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

CHROMIUM = shutil.which("chromium")
DEADLINE_S = 60.0
"""Of a start or an answer; a machine under load takes its time."""

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    # Without these it looks for its maker's servers.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)


class Screen(NamedTuple):
    """What a page is shown on."""

    name: str
    width: int
    height: int
    scheme: Literal["light", "dark"]


class Browser:
    """One running chromium."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._received = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its answer. Events that come in between are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, method: str) -> dict[str, Any]:
        """The next event of this kind."""
        while True:
            for event in self.events:
                if event.get("method") == method:
                    self.events.remove(event)
                    return event
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._from], [], [], max(deadline - time.monotonic(), 0.0))
            assert ready, "chromium does not answer"
            more = os.read(self._from, 1 << 20)
            assert more, "chromium has ended"
            self._received += more
        one, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        return message


class Page:
    """One page on one screen, loaded."""

    def __init__(self, browser: Browser, file: Path, screen: Screen) -> None:
        self._browser = browser
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        size = {"width": screen.width, "height": screen.height, "deviceScaleFactor": 1, "mobile": screen.width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": screen.scheme}])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        browser.events.clear()
        self._ask("Page.navigate", url=file.as_uri())
        browser.wait_for("Page.loadEventFired")

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """What an expression of JavaScript gives."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors, warnings and blocked requests of the console so far, and every address that was asked for."""
        shown = [json.dumps(each["params"]) for each in self._browser.events if each.get("method") in _COMPLAINTS]
        asked = [
            each["params"]["request"]["url"]
            for each in self._browser.events
            if each.get("method") == "Network.requestWillBeSent"
        ]
        return shown + asked[1:]  # the first is the page itself

    def screenshot(self, file: Path, whole: bool = True) -> None:
        """As a PNG; `whole`: also what is below the screen's edge."""
        shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))


_COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Starts chromium and ends it."""
    assert CHROMIUM is not None
    reads, to_browser = os.pipe()
    from_browser, writes = os.pipe()
    with tempfile.TemporaryDirectory(prefix="pvehook-chromium-", ignore_cleanup_errors=True) as profile:
        # The shell puts the pipes where chromium wants them; a Python between fork and exec would be less safe.
        command = f'exec "$0" "$@" 3<&{reads} 4>&{writes}'
        process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            pass_fds=(reads, writes),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        try:
            yield Browser(to_browser, from_browser)
        finally:
            os.close(to_browser)  # it leaves when its pipe is closed
            os.close(from_browser)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
