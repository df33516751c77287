"""Comparisons with numbers that a test chooses, and a headless Chromium that opens their pages."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from metalearn.compare.model import Band, Comparison, Entry, Estimate, Group, Pair, Picture, Series
from metalearn.report.claims import Claim, claim, half_width, summary

WAIT = 60.0  # seconds for an answer of the browser
EVIL = 'lr=0.1 </script><b id="evil">bold</b><img src=x onerror="document.title=1">'
PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 300 60"><script>document.title = "broken"</script>'
    '<rect width="300" height="60" fill="#cfe3f5" onclick="alert(1)"/><text x="20" y="35">cell</text></svg>'
)


def _estimate(values: list[float]) -> Estimate:
    found = summary(values)
    half = half_width(values) if len(values) > 1 else None
    return Estimate(found.mean, found.deviation, half, dict(enumerate(values)))


def _entry(
    label: str, seed: int, steps: numpy.ndarray, values: dict[str, numpy.ndarray], **more: Any
) -> Entry:
    final = {name: float(curve[-1]) for name, curve in values.items()}
    about: dict[str, Any] = {
        "place": f"runs/{label}_seed{seed}", "source": "local", "state": "finished", "step": int(steps[-1]),
        "message": "", "config": {"method.learning_rate": label, "task.name": "digits", "seed": seed},
        "goals": {"valid/accuracy": "max"}, "seconds": 61.0 + seed, "parameters": 1234, "comparable": True,
        "joules": 7200.0,
    }  # fmt: skip
    best = {name: float(curve.min()) for name, curve in values.items()}
    series = {name: Series(steps, curve) for name, curve in values.items() if len(curve) == len(steps)}
    return Entry(seed=seed, series=series, final=final, best=best, **about | more)


def _group(label: str, options: dict[str, str], entries: list[Entry], metrics: list[str]) -> Group:
    curves = {}
    for metric in metrics:
        stack = numpy.stack([entry.series[metric].values for entry in entries])
        spread = stack.std(0) if len(entries) > 1 else numpy.full(stack.shape[1], numpy.nan)
        mean = stack.mean(0)
        steps = entries[0].series[metric].steps
        curves[metric] = Band(steps, mean, mean - 2 * spread, mean + 2 * spread, len(entries))
    having = {metric: [entry for entry in entries if metric in entry.final] for metric in entries[0].final}
    final = {metric: _estimate([entry.final[metric] for entry in some]) for metric, some in having.items()}
    best = {metric: _estimate([entry.best[metric] for entry in some]) for metric, some in having.items()}
    best = {metric: value for metric, value in best.items() if not metric.startswith("test/")}
    return Group(label, options, tuple(entries), final, best, curves, "1,234", 62.0)


@pytest.fixture
def make_comparison() -> Callable[..., Comparison]:
    """`make_comparison(labels, seeds=3, points=20)`: falling losses, the later a label the higher."""
    return _comparison


def _comparison(labels: list[str], seeds: int = 3, points: int = 20, **changes: Any) -> Comparison:
    rng = numpy.random.default_rng(0)
    steps = numpy.arange(points) * 10
    groups = []
    for place, label in enumerate(labels):
        entries = []
        for seed in range(seeds):
            loss = 0.1 * (place + 1) + 3 * numpy.exp(-steps / 50) + 0.01 * rng.random(points)
            test = numpy.array([2.0 + place + 0.1 * seed])
            values = {"valid/loss": loss, "valid/accuracy": 100 - 10 * loss, "test/error": test}
            entries.append(_entry(label, seed, steps, values))
        options = {"method.learning_rate": label, "method.name": "sgd" if place % 2 else "adam"}
        groups.append(_group(label, options, entries, ["valid/loss", "valid/accuracy"]))
    final = {group.label: group.final["test/error"].values for group in groups}
    pairs = [
        Pair("test/error", "final", first, second, _claim(first, second, final))
        for first, second in itertools.pairwise(labels)
    ]  # fmt: skip
    whole = Comparison(
        title="Comparison of learning rates",
        groups=tuple(groups),
        keys=("method.learning_rate", "method.name"),
        metrics=("valid/loss", "valid/accuracy", "test/error"),
        curved=("valid/loss", "valid/accuracy"),
        pairs=tuple(pairs),
    )
    return Comparison(**{**vars(whole), **changes})


def _claim(first: str, second: str, final: dict[str, dict[int, float]]) -> Claim:
    return claim({first: final[first], second: final[second]}, "min", "%")


class Browser:
    """A headless Chromium, spoken to in the DevTools protocol through a pipe; one page at a time."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        # the protocol's file descriptors are 3 and 4 in the child
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
                 "--hide-scrollbars", "--force-color-profile=srgb", "--no-first-run",
                 f"--user-data-dir={profile}"]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *flags], pass_fds=(to_read, from_write),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)
        self._out, self._in = to_write, from_read
        self._rest, self._number, self._session = b"", 0, ""
        self.complaints: list[str] = []  # of the page: exceptions, errors, refused requests
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one call."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], WAIT)
            assert ready, f"chromium has not answered for {WAIT:g} s"
            self._rest += os.read(self._in, 1 << 20)
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        method, what = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(what["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.complaints.append(what["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not what["request"]["url"].startswith(
            ("file:", "data:")
        ):
            self.complaints.append(f"asked for {what['request']['url']}")

    def size(self, width: int, height: int = 900) -> None:
        """The window in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def look(self, scheme: str) -> None:
        """light or dark, as the system would say."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, page: Path, address: str = "") -> None:
        """Load the page anew and wait until its script is through."""
        self.complaints.clear()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=page.resolve().as_uri() + (f"#{address}" if address else ""))
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def wait(self, condition: str) -> None:
        """Until the script is true."""
        ends = time.monotonic() + WAIT
        while self.evaluate(f"Boolean({condition})") is not True:
            assert time.monotonic() < ends, f"{condition} did not become true: {self.complaints}"
            time.sleep(0.02)

    def evaluate(self, script: str) -> Any:
        """The value of a script in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """What elements say, in order."""
        return self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)"
        )

    def click(self, selector: str) -> None:
        """A click by the mouse on the middle of the first such element."""
        place = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.mouse("mousePressed", *place)
        self.mouse("mouseReleased", *place)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """mousePressed, mouseReleased or mouseMoved."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def key(self, key: str, code: int, text: str = "", modifiers: int = 0) -> None:
        """A key pressed and let go, e.g. ("Tab", 9), ("Enter", 13, "\\r"), (" ", 32, " ")."""
        about = {"key": key, "windowsVirtualKeyCode": code, "code": key, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> Path:
        """The window as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def close(self) -> None:
        self._session = ""
        try:
            self.call("Browser.close")
        finally:
            self._process.wait(30)
            os.close(self._out)
            os.close(self._in)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all pages; skipped with the reason where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium or google-chrome on PATH: pages are not opened")
    found = Browser(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def evil() -> str:
    """A label that would break out of a page that takes it for markup."""
    return EVIL


@pytest.fixture
def picture() -> Picture:
    """A drawing with a script in it."""
    return Picture("Genotype of <b>lr</b>", "Seed 0.", PICTURE)
