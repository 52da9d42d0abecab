"""Debian's chromium, driven over WebDriver's plain HTTP: no library is needed."""

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PORT = 9517


class Browser:
    """A headless browser that can reach no other machine."""

    def __init__(self, address: str, profile: str):
        self._address = address
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}",
            "--window-size=1200,900",
        ]
        capabilities = {"goog:chromeOptions": {"args": arguments, "binary": "/usr/bin/chromium"}}
        session = self._post("/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{session['sessionId']}"

    def open(self, file: Path) -> None:
        """Loads a local file."""
        self._post(f"{self._session}/url", {"url": file.resolve().as_uri()})

    def run(self, script: str):
        """The value that a script returns in the page."""
        return self._post(f"{self._session}/execute/sync", {"script": script, "args": []})

    def screenshot(self, file: Path, *, width: int, height: int | None = None) -> None:
        """Writes a PNG of the whole page, or of its first `height` pixels."""
        self._resize(width, 900)
        height = height or self.run("return document.documentElement.scrollHeight") + 150
        self._resize(width, height)
        with urllib.request.urlopen(f"{self._address}{self._session}/screenshot") as answer:
            file.write_bytes(base64.b64decode(json.load(answer)["value"]))

    def _resize(self, width: int, height: int) -> None:
        self._post(f"{self._session}/window/rect", {"width": width, "height": height})

    def quit(self) -> None:
        """Ends the browser."""
        request = urllib.request.Request(f"{self._address}{self._session}", method="DELETE")
        urllib.request.urlopen(request).close()

    def _post(self, path: str, value: dict):
        request = urllib.request.Request(
            self._address + path,
            data=json.dumps(value).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]


def installed() -> bool:
    """Whether the browser and its driver are there."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a fresh profile; it ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={PORT}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = f"http://127.0.0.1:{PORT}"
            _wait_for(address)
            page = Browser(address, profile)
            yield page
            page.quit()
        finally:
            driver.terminate()
            driver.wait()


def _wait_for(address: str) -> None:
    for _ in range(150):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{address}/status").close()
            return
        time.sleep(0.2)
    raise TimeoutError("chromedriver does not answer.")
