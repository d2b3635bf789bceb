"""The page in a browser: pictures load, nothing is asked of a network, nothing sticks out at the side."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dakd.evaluate.evaluate import evaluate
from dakd.report.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

# What would make a browser fetch something, or run a script.
LOADED = re.compile(
    r"""\s(src|href|action|poster)\s*=\s*(?!["']?(data:|#))|url\(|@import|<script|<link|<iframe|<object"""
)
# Opens what is folded, and notes what the browser made of the page.
MEASURE = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  const root = document.documentElement;
  const outside = [...document.querySelectorAll("body *")].filter(one =>
    !one.closest(".scroll, pre, svg") && one.getBoundingClientRect().right > root.clientWidth + 1);
  const facts = {
    width: root.clientWidth, needed: root.scrollWidth, outside: outside.map(one => one.outerHTML.slice(0, 80)),
    images: [...document.images].map(one => one.naturalWidth),
    charts: [...document.querySelectorAll("svg")].map(one => one.getBoundingClientRect().height),
    asked: performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:")),
  };
  const note = document.createElement("pre");
  note.id = "measured"; note.textContent = JSON.stringify(facts); document.body.append(note);
});
</script>"""


def browse(page: Path, width: int, *options: str) -> str:
    """Open a page in a frame of this width; a window of the browser's own has a least width."""
    frame = page.with_name(f"frame-{width}.html")
    style = "margin:0;border:0;display:block"
    frame.write_text(
        f'<body style="margin:0"><iframe src="{page.name}" style="{style};width:{width}px;height:3000px"></iframe>'
        "<script>addEventListener('message', message => document.body.append(message.data))</script></body>"
    )
    profile = page.with_name("profile")
    command = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"),
        *("--no-first-run", "--disable-extensions", "--disable-component-update", "--disable-background-networking"),
        *(f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars"),
        *("--virtual-time-budget=4000", f"--window-size={max(width, 600)},3000", *options, frame.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def measure(page: Path, text: str, width: int) -> dict:
    script = MEASURE.replace(
        "document.body.append(note);", "parent.postMessage('MEASURED' + note.textContent + 'END', '*');"
    )
    copy = page.with_name("copy.html")
    copy.write_text(text.replace("</body>", script + "</body>"))
    found = re.search(r"MEASURED(\{.*?\})END<", browse(copy, width, "--dump-dom"), re.DOTALL)
    assert found, "the page did not tell what it measured"
    return json.loads(unescape(found[1]))


@pytest.fixture
def page(run_dir, config, grey_student) -> Path:
    samples = run_dir / "train_jointnet" / "stage1" / "samples"
    for step in range(20, 90, 10):
        noise = np.random.default_rng(step).integers(0, 255, (300, 700), dtype=np.uint8)
        Image.fromarray(noise).save(samples / f"step-{step:08d}.png")
    evaluate(config, run_dir)
    return write_report(run_dir)


def test_the_page_holds_everything_and_fits_wide_and_narrow(page, tmp_path):
    text = page.read_text()
    assert not LOADED.search(text)
    for width in (1200, 400):
        facts = measure(page, text, width)
        assert facts["width"] == width
        assert facts["needed"] <= width and facts["outside"] == []
        assert len(facts["images"]) > 30 and min(facts["images"]) > 0
        assert len(facts["charts"]) >= 12 and min(facts["charts"]) > 100
        assert facts["asked"] == []


def test_what_would_be_wrong_is_seen(page):
    text = page.read_text()
    broken = text.replace("<h1>", '<div style="width:2000px">wide</div><img src="http://absent.invalid/a.png"><h1>', 1)
    assert LOADED.search(broken)
    facts = measure(page, broken, 400)
    assert facts["needed"] >= 2000 and facts["outside"] and min(facts["images"]) == 0
    assert any("absent.invalid" in name for name in facts["asked"])


def test_the_page_is_painted(page, tmp_path):
    shot = tmp_path / "page.png"
    browse(page, 1200, f"--screenshot={shot}")
    pixels = np.array(Image.open(shot).convert("L"))
    assert pixels.shape[1] == 1200 and pixels.std() > 10 and len(np.unique(pixels)) > 100
