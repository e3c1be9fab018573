import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from asc.report.page import report_page

Evaluated = Any
Evaluate = Callable[..., Evaluated]

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip


def page_of(it: Evaluated, **options: bool) -> str:
    return report_page(it.content, it.found, it.clips, it.root, it.model, **options)


@pytest.fixture(scope="module")
def page(evaluated: Evaluated) -> str:
    return page_of(evaluated)


class Elements(HTMLParser):
    """Counts elements, and collects text and what would be loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.text = ""
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        for name, value in attrs:
            if name in ("src", "href") and tag not in ("use", "svg"):
                self.loaded.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_text(page: str) -> None:
    """Of files, classes and weights: no element and no template of theirs takes effect."""
    found = Elements(page)
    assert not {"script", "i", "b", "iframe"} & set(found.count)
    assert found.count["img"] == found.text.count("taken for\n")  # the pictures alone
    for name in (
        "audio/<script>alert(1)</script>.wav",
        "<img src=x onerror=alert(1)>",
        "tram $\\frac$",
        "caf\ufffd & <b>",
        "caf\ufffd {{ 7 * 7 }}.wav",
        "runs/<i>x</i>/folded.pt",
    ):
        assert name in found.text, name
    page.encode()  # without what is no text


def test_nothing_is_loaded(page: str) -> None:
    loaded = Elements(page).loaded
    assert loaded and all(uri.startswith("data:") for uri in loaded)
    assert "default-src 'none'" in page and "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_what_it_says(page: str, evaluated: Evaluated) -> None:
    text = Elements(page).text
    last = evaluated.found.scores[3]
    for part in (
        f"{last.log_loss_macro:.3f}", f"{100 * last.accuracy_macro:.1f}\u202f%", "95\u202f% inter",
        "no TTA, not calibrated", "3 TTA, calibrated", "seen in training", "simulated", "oslo",
        "became right", "wrong before and after", "fl_tta", "epochs", "61\u202f700 parameters",
        "Expected calibration error:",
    ):  # fmt: skip
        assert part in text, part
    wrong = (evaluated.found.probabilities[3].argmax(1).tolist(), evaluated.clips.labels)
    assert text.count("taken for\n") == sum(a != b for a, b in zip(*wrong, strict=True)) > 1


def test_what_does_not_apply_is_left_out(evaluate: Evaluate) -> None:
    """Without masks, devices, cities, mistakes; one clip has no intervals."""
    labels = evaluate(("x.wav",), (0,), tta=0).found.logits.argmax(1).tolist()
    it = evaluate(("x.wav",), tuple(labels), tta=0)
    it.model.run = None
    text = Elements(page_of(it)).text
    assert "There are none: every clip got its own class" in text
    for part in ("Devices", "Cities", "augmentation changed", "95\u202f%"):
        assert part not in text, part


def test_without_audio(evaluated: Evaluated) -> None:
    found = Elements(page_of(evaluated, audio=False))
    assert "audio" not in found.count and found.count["img"] > 1


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM} here")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.mark.parametrize(
    ("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")]
)  # fmt: skip
def test_in_a_browser(page: str, browser: Any, width: int, scheme: Any, tmp_path: Path) -> None:
    """No request, no word on the console, no dialog of a script; it fits the screen."""
    path = tmp_path / "report.html"
    path.write_text(page)
    said: list[str] = []
    asked: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    pictures = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert tab.evaluate(pictures)
    # Ink on paper, either way round; the pictures' text is in the page's ink.
    paper, ink, drawn = tab.evaluate(
        """[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector("svg text")).fill]"""
    )
    light, dark = ("paper", "ink") if scheme == "light" else ("ink", "paper")
    values = {"paper": sum(map(int, re.findall(r"\d+", paper))),
              "ink": sum(map(int, re.findall(r"\d+", ink)))}  # fmt: skip
    assert values[light] > values[dark] + 300
    assert drawn.startswith("rgb") and drawn != paper
    tab.close()
