"""The pages in headless Chromium: what they ask for, what it complains of, and whether they fit a screen."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafarm.report.page import write_comparison, write_report

# What .ci/run installs, and what else may be there.
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
SECTIONS = [
    "Key figures",
    "Findings",
    "Curves",
    "Base against tuned",
    "Metrics",
    "Overfitting indicators",
    "Data",
    "Settings",
    "Choices and warnings",
    "Best practices checklist",
    "Use and export",
    "Versions and machine",
]
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason=f"no browser to look at the report with: none of {', '.join(NAMES)} is on the PATH",
)


# The browser reads descriptor 3 and writes descriptor 4.
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
_PATIENCE_SECONDS = 60


def _make_pipe() -> tuple[int, int]:
    """Return the ends of a pipe, for reading and writing, beyond the descriptors that the browser uses."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


class Browser:
    """Headless Chromium, spoken to over a pipe in its DevTools protocol; no port is opened."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        (to_browser, self._out), (self._in, from_browser) = _make_pipe(), _make_pipe()
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(to_browser), str(from_browser), CHROMIUM, *options],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._num_sent = 0
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        """Return what a command answers; events that come meanwhile are kept."""
        self._num_sent += 1
        message: dict[str, Any] = {"id": self._num_sent, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._num_sent:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Show a file on a screen of this size, and wait until all of it is there."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        self.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
        )

    def evaluate(self, expression: str) -> Any:
        """Return the value of JavaScript that is run in the page from outside."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def photograph(self, *, whole: bool = True) -> bytes:
        """Return the page as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def requests(self) -> list[str]:
        """Return what was asked for since the page was opened; data in the page itself is no request."""
        asked = [
            event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"
        ]
        urls = [parameters["request"]["url"] for parameters in asked]
        return [url for url in urls if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Return what the console and the log have, violations of the content policy included."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def close(self) -> None:
        """End the browser and all that it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], _PATIENCE_SECONDS)[0], "the browser says nothing"
            piece = os.read(self._in, 2**20)
            assert piece, "the browser has ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


def shut(browser: Browser) -> None:
    """Nothing but the file was asked for, and nothing was complained of."""
    assert [url for url in browser.requests() if not url.startswith("file:")] == []
    assert len(browser.requests()) == 1
    assert browser.complaints() == []


def headings(browser: Browser) -> list[str]:
    return browser.evaluate("[...document.querySelectorAll('h2')].map(one => one.textContent)")


def overhang(browser: Browser) -> int:
    """Return by how many pixels the page is wider than its screen."""
    return browser.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture(params=["plain", "nasty", "killed"])
def page(request: pytest.FixtureRequest, make_run: Any, nasty_text: str) -> Path:
    if request.param == "killed":
        return write_report(make_run(run=None, evaluation=None, has_model=False))
    return write_report(make_run(text=nasty_text if request.param == "nasty" else ""))


def test_a_report_has_every_section_and_asks_for_nothing(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 900)
    assert headings(browser) == SECTIONS
    shut(browser)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_report_is_no_wider_than_the_screen(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, 900)
    assert browser.evaluate("window.innerWidth") == width
    assert overhang(browser) <= 0
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert overhang(browser) <= 0


@pytest.mark.parametrize("width", [390, 1280])
def test_the_text_of_the_plots_can_be_read(browser: Browser, make_run: Any, width: int) -> None:
    browser.open(write_report(make_run()), width, 900)
    heights = browser.evaluate(
        "[...document.querySelectorAll('figure svg text')].map(one => one.getBoundingClientRect().height)"
        ".filter(height => height > 0)"
    )
    assert heights
    assert min(heights) > 11
    assert max(heights) < 24


def test_texts_of_a_run_stay_texts(browser: Browser, make_run: Any, nasty_text: str) -> None:
    browser.open(write_report(make_run(text=nasty_text)), 1280, 900)
    assert browser.evaluate("document.querySelectorAll('script').length") == 0
    assert browser.evaluate("document.querySelectorAll('style').length") == 1
    assert "<script>alert('x')</script>" in browser.evaluate("document.querySelector('h1').textContent")
    assert "{{ 7*7 }}" in browser.evaluate("document.querySelector('h1').textContent")


def test_a_script_would_not_run(browser: Browser, make_run: Any) -> None:
    page = write_report(make_run())
    page.write_text(page.read_text().replace("<h1>", "<script>document.title = 'run'</script><h1>"))
    browser.open(page, 1280, 900)
    assert browser.evaluate("document.title") != "run"
    assert "Content Security Policy" in "".join(browser.complaints())


def test_a_request_would_be_seen(browser: Browser, make_run: Any) -> None:
    page = write_report(make_run())
    page.write_text(
        page.read_text()
        .replace("default-src 'none'", "default-src *")
        .replace("<h1>", "<iframe src='http://127.0.0.1:9/x'></iframe><h1>")
    )
    browser.open(page, 1280, 900)
    assert any(url.startswith("http:") for url in browser.requests())


@pytest.mark.parametrize("width", [390, 1280])
def test_a_comparison_fits_and_asks_for_nothing(
    browser: Browser, make_run: Any, nasty_text: str, tmp_path: Path, width: int
) -> None:
    write_comparison([make_run("a"), make_run("b", text=nasty_text)], tmp_path / "c.html")
    browser.open(tmp_path / "c.html", width, 900)
    assert headings(browser) == ["Runs", "Differing settings", "Curves", "Metrics"]
    assert overhang(browser) <= 0
    shut(browser)


def test_paper_is_light_whatever_the_screen_is(browser: Browser, make_run: Any) -> None:
    browser.open(write_report(make_run()), 1280, 900, scheme="dark")
    shade = "getComputedStyle(document.body).backgroundColor"
    assert browser.evaluate(shade) == "rgb(22, 25, 26)"
    browser.send(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    assert browser.evaluate(shade) == "rgb(255, 255, 255)"
    browser.send("Emulation.setEmulatedMedia", media="")
