"""The page: whole, self-contained, and honest about what is absent."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

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
    assert page.sources and all(
        source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#")) for source in page.sources
    )


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


def test_certainty_objects_outlines_and_confidence_are_shown(run_dir, config, grey_student):
    evaluate(config, run_dir)
    text = write_report(run_dir).read_text()
    parse(text)
    table = json.loads((run_dir / "evaluate" / "real.json").read_text())
    interval = table["bootstrap"]["scores"]["iou:oil"]
    assert f"{100 * interval['value']:.2f} [{100 * interval['low']:.2f}, {100 * interval['high']:.2f}]" in text
    assert "real+synthetic minus real" in text and "1000 resamples" in text
    assert f"ECE {100 * table['calibration']['ece']:.2f} %" in text
    assert f"<td>{100 * table['boundary_iou']['per_class']['oil']:.2f}</td>" in text.replace("<td class=best>", "<td>")
    oil = table["objects"]["per_class"]["oil"]
    assert f"<td>oil</td><td>all</td><td>{oil['objects']}</td><td>{100 * oil['recall']:.2f}</td>" in text
    assert text.count('aria-label="accuracy by confidence"') == 2 and text.count('aria-label="found, %"') == 2


def test_an_evaluation_of_before_there_were_details_is_still_shown(run_dir, config, grey_student):
    scores = evaluate(config, run_dir).scores
    path = run_dir / "evaluate" / "table.json"
    table = json.loads(path.read_text())
    for one in table["students"].values():
        for key in ("objects", "boundary_iou", "calibration", "bootstrap"):
            del one[key]
    path.write_text(json.dumps(table))
    text = write_report(run_dir).read_text()
    parse(text)
    assert f"{100 * scores['real'].f1:.2f}" in text and "accuracy by confidence" not in text


def test_folders_beside_the_runs_images_are_shown(run_dir, config, grey_student):
    evaluate(config, run_dir)
    other = json.loads((run_dir / "evaluate" / "table.json").read_text())
    other |= {"folder": "/data/harbour", "num_images": 77, "skipped": ["a.png: is truncated"]}
    write_json(run_dir / "evaluate" / "harbour" / "table.json", other)
    text = write_report(run_dir).read_text()
    assert "Evaluated beside it: harbour" in text and "77 images of /data/harbour. 1 bad files were left out." in text


def test_samples_of_every_step_are_there_and_large_ones_are_small(run_dir):
    samples = run_dir / "train_jointnet" / "stage2" / "samples"
    samples.mkdir(parents=True)
    for step in range(10, 150, 10):
        noise = np.random.default_rng(step).integers(0, 255, (256, 1024), dtype=np.uint8)
        Image.fromarray(noise).save(samples / f"step-{step:08d}.png")
    text = write_report(run_dir).read_text()
    parse(text)
    assert "Samples of all 14 steps" in text
    assert all(text.count(f">step-{step:08d}<") == 1 for step in range(10, 150, 10))
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert len(pictures) == 14
    for encoded in pictures:
        data = base64.b64decode(encoded)
        assert Image.open(io.BytesIO(data)).size == (480, 120) and len(data) < 60_000


def test_very_many_steps_are_thinned_evenly(run_dir, monkeypatch):
    monkeypatch.setattr("dakd.evaluate.report_training._MAX_GRIDS", 5)
    samples = run_dir / "train_jointnet" / "stage2" / "samples"
    samples.mkdir(parents=True)
    for step in range(9):
        Image.fromarray(np.full((4, 8), step, np.uint8)).save(samples / f"step-{step:08d}.png")
    text = write_report(run_dir).read_text()
    assert "Samples of 5 evenly spaced of 9 steps" in text
    assert re.findall(r">step-0000000(\d)<", text) == ["0", "2", "4", "6", "8"]
