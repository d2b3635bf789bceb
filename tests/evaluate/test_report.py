"""The page: whole, self-contained, and honest about what is absent."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from dakd.evaluate.evaluate import evaluate
from dakd.evaluate.report import write_report
from dakd.runtime.files import write_json

VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Checks that every element is closed in order, and gathers what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(text: str) -> Balance:
    page = Balance()
    page.feed(text)
    assert page.open == []
    return page


def test_the_page_is_well_formed_and_loads_nothing(run_dir, config, grey_student):
    evaluate(config, run_dir)
    page = parse(write_report(run_dir).read_text())
    assert page.sources and all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)


def test_the_page_shows_scores_curves_pictures_and_settings(run_dir, config, grey_student):
    scores = evaluate(config, run_dir).scores
    text = write_report(run_dir).read_text()
    assert f"{100 * scores['real'].miou:.2f}" in text
    assert text.count("<svg") >= 4 and "real+synthetic" in text
    assert "samples, step-00000010" in text and "0.528" in text
    assert "run_dir:" in text  # the resolved configuration
    assert "test-0" in text


def test_absent_parts_are_named_with_the_step_that_writes_them(run_dir):
    text = write_report(run_dir).read_text()
    steps = re.findall(r"because the step <b>([^<]+)</b> has not written", text)
    assert {"evaluate", "predict", "generate", "prepare", "train_jointnet (stage2)"} <= set(steps)


def test_a_ddpm_has_its_one_curve_and_misses_no_stage(run_dir):
    (run_dir / "train_jointnet" / "stage1").rename(run_dir / "train_jointnet" / "ddpm")
    text = write_report(run_dir).read_text()
    assert "DDPM" in text and "samples, step-00000010" in text and "train_jointnet (stage" not in text


def test_an_empty_run_folder_still_gives_a_page(tmp_path):
    text = write_report(tmp_path).read_text()
    parse(text)
    assert "has not written" in text and "data:image/png" not in text


def test_no_run_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        write_report(tmp_path / "absent")


def test_names_are_escaped(run_dir, config, grey_student):
    (run_dir / "config.yaml").write_text("name: <script>alert(1)</script>\n")
    text = write_report(run_dir).read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_what_prepare_repaired_or_left_out_is_told(run_dir):
    report = {"splits": {}, "num_off_palette": 7, "off_palette": {"a.png": 7}, "skipped": ["b.png: is truncated"]}
    write_json(run_dir / "prepare" / "report.json", report)
    text = write_report(run_dir).read_text()
    assert "7 label pixels took the nearest palette colour" in text and "1 bad files were skipped" in text
