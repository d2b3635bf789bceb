"""The page: whole, self-contained, and it names the absent parts."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluate_worlds import write_test_images
from PIL import Image
from sealed_edits import content_of, reseal

from dakd.evaluate.evaluate import evaluate
from dakd.report.report import write_report
from dakd.runtime.files import file_hash
from dakd.runtime.sealed import seal_yaml, write_json

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


def test_a_run_folder_without_results_still_gives_a_page(tmp_path):
    (tmp_path / "prepare").mkdir()
    text = write_report(tmp_path).read_text()
    parse(text)
    assert "has not written" in text and "data:image/png" not in text


def test_no_run_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        write_report(tmp_path / "absent")
    (tmp_path / "runs" / "demo" / "prepare").mkdir(parents=True)
    (tmp_path / "runs" / "report").mkdir()
    with pytest.raises(ValueError, match=r"runs is not a run folder: found none of config\.yaml, .*; give runs/NAME"):
        write_report(tmp_path / "runs")
    assert not list((tmp_path / "runs" / "report").iterdir())


def test_names_are_escaped(run_dir, config, grey_student):
    (run_dir / "config.yaml").write_text(seal_yaml("name: <script>alert(1)</script>\n"))
    text = write_report(run_dir).read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_files_that_prepare_repaired_or_left_out_are_named(run_dir):
    report = {"splits": {}, "num_off_palette": 7, "off_palette": {"a.png": 7}, "skipped": ["b.png: is truncated"]}
    report |= {"layout": "images/", "unread": ["annotations/ (2 files)"]}
    reseal(run_dir / "prepare" / "report.json", report)
    text = write_report(run_dir).read_text()
    assert "7 label pixels took the nearer of two blended class colours" in text and "1 bad files were skipped" in text
    assert "not read: annotations/ (2 files)" in text


def test_certainty_objects_outlines_and_confidence_are_shown(run_dir, config, grey_student):
    write_test_images(run_dir, 12)
    evaluate(config, run_dir)
    text = write_report(run_dir).read_text()
    parse(text)
    table = json.loads((run_dir / "evaluate" / "real.json").read_text())
    interval = table["bootstrap"]["scores"]["iou:oil"]
    assert f"{100 * interval['value']:.2f} [{100 * interval['low']:.2f}, {100 * interval['high']:.2f}]" in text
    assert "real+synthetic minus real" in text and "1000 resamples" in text
    assert f"ECE {100 * table['calibration']['ece']:.2f} %" in text
    boundary = f"{100 * table['boundary_iou']['per_class']['oil']:.2f}</td>"
    assert f"<td>{boundary}" in text or f'<td class="best">{boundary}' in text
    oil = table["objects"]["per_class"]["oil"]
    assert f"<td>oil</td><td>all</td><td>{oil['objects']}</td><td>{100 * oil['recall']:.2f}</td>" in text
    assert text.count('aria-label="accuracy, % by confidence, %"') == 2 and text.count('aria-label="found, % by ') == 2


def test_pairs_without_a_student_are_shown(run_dir, config):
    shutil.rmtree(run_dir / "train_saross")
    evaluate(config, run_dir)
    text = write_report(run_dir).read_text()
    parse(text)
    assert "share of oil, %" in text
    assert "Scores: not there, because the step <b>train_saross</b> has not written it." in text


def test_distances_to_the_real_images_are_shown_with_their_curves(run_dir, config, grey_student):
    evaluate(config, run_dir)
    text = write_report(run_dir).read_text()
    assert "spectrum, greys, shares and edges" in text and "class shares (total variation), %" in text
    assert "not measured (evaluate.fidelity.extractor is none" in text and ">FID<" not in text
    assert text.count('aria-label="power, greys squared') == 1
    path = run_dir / "evaluate" / "generation.json"
    one = {"title": "FID", "value": 41.25, "low": 39.5, "high": 43.0}
    fidelity = {"metrics": {"fid": one}, "num_images": 30, "resamples": 20, "confidence": 0.95, "note": ""}
    fidelity["halves"] = {"num_images": 15, "real": 1.0, "synthetic": 2.0}
    reseal(path, content_of(path) | {"fidelity": fidelity})
    text = write_report(run_dir).read_text()
    assert "<td>FID</td><td>41.25</td><td>39.5 to 43</td><td>30</td>" in text and "not measured" not in text


def test_scores_and_predictions_of_an_earlier_training_are_marked_and_printed(run_dir, config, grey_student, capsys):
    evaluate(config, run_dir)
    shutil.copytree(run_dir / "evaluate", run_dir / "evaluate" / "train", ignore=shutil.ignore_patterns("pictures"))
    student = run_dir / "train_saross" / "real" / "student.safetensors"
    record = {"training_set": "real", "student": "/moved/student.safetensors", "inputs": "x", "images": ["a"]}
    write_json(run_dir / "predict" / "real" / "predict.json", record | {"student_sha256": file_hash(student)})
    Image.new("L", (4, 4)).save(run_dir / "predict" / "real" / "a_overlay.png")
    assert "earlier training" not in write_report(run_dir).read_text()
    capsys.readouterr()
    student.write_text("trained again")
    text = write_report(run_dir).read_text()
    parse(text)
    scores = "real: scores of an earlier training of this student; run: dakd evaluate"
    predictions = "real: predictions of an earlier training of this student; run: dakd predict"
    # Above the scores and the pictures, and above those of the folder beside them.
    assert text.count(scores) == 3 and text.count(predictions) == 1
    assert capsys.readouterr().out.splitlines() == [f"report: {one}" for one in (scores, scores, predictions)]


def test_scores_stay_marked_where_the_evaluation_that_follows_is_stopped_before_its_table(
    run_dir, config, grey_student, capsys
):
    evaluate(config, run_dir)
    student = run_dir / "train_saross" / "real" / "student.safetensors"
    student.write_text("trained again")
    scores = content_of(run_dir / "evaluate" / "real.json")
    reseal(run_dir / "evaluate" / "real.json", scores | {"sha256": file_hash(student)})
    assert "scores of an earlier training" in write_report(run_dir).read_text()


def test_the_same_run_gives_the_same_bytes(run_dir, config, grey_student):
    evaluate(config, run_dir)
    assert write_report(run_dir).read_bytes() == write_report(run_dir).read_bytes()


def test_folders_beside_the_runs_images_are_shown(run_dir, config, grey_student):
    evaluate(config, run_dir)
    other = content_of(run_dir / "evaluate" / "table.json")
    other |= {"folder": "/data/harbour", "num_images": 77, "skipped": ["a.png: is truncated"]}
    write_json(run_dir / "evaluate" / "harbour" / "table.json", other)
    text = write_report(run_dir).read_text()
    assert "Also evaluated: harbour" in text and "77 images of /data/harbour. 1 bad files were left out." in text


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
    monkeypatch.setattr("dakd.report.training._MAX_GRIDS", 5)
    samples = run_dir / "train_jointnet" / "stage2" / "samples"
    samples.mkdir(parents=True)
    for step in range(9):
        Image.fromarray(np.full((4, 8), step, np.uint8)).save(samples / f"step-{step:08d}.png")
    text = write_report(run_dir).read_text()
    assert "Samples of 5 evenly spaced of 9 steps" in text
    assert re.findall(r">step-0000000(\d)<", text) == ["0", "2", "4", "6", "8"]
