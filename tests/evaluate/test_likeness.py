"""Both comparisons from a run's folder to its text and its page."""

from __future__ import annotations

import re

import pytest
from evaluate_worlds import slick, write_images

from dakd.config import EvaluateConfig
from dakd.evaluate.evaluate import evaluate
from dakd.evaluate.extractors import open_extractor
from dakd.evaluate.likeness import compare_images, fidelity_section, format_likeness
from dakd.evaluate.report import write_report


@pytest.fixture
def with_small(config):
    fidelity = {"extractor": "small", "bootstrap": 20}
    return config.model_copy(update={"evaluate": EvaluateConfig(fidelity=fidelity)})


@pytest.fixture
def statistics(with_small, tmp_path):
    real = write_images(tmp_path / "real", [slick(seed, 32) for seed in range(24)])
    synthetic = write_images(tmp_path / "synthetic", [slick(seed, 32, looks=4.0) for seed in range(100, 120)])
    extractor = open_extractor(with_small.evaluate.fidelity, "cpu")
    return compare_images(with_small, tmp_path / "run", real, synthetic, extractor)


def test_the_text_shows_every_number_with_its_interval_and_n(statistics, tmp_path):
    text = format_likeness(statistics)
    number = r"-?[\d.e-]+"
    interval = f"{number} to {number}"
    assert re.search(rf"equivalent looks of the sea, dB( +{number}){{3}} +{interval} +{number}", text)
    assert re.search(rf"Frechet distance \(small-random-conv\) +{number} +{interval} +20\n", text)
    assert "24 real and 20 synthetic images of 32x32 pixels" in text
    assert "real from other real" in text and "20 resamples" in text
    assert len(list((tmp_path / "run" / "evaluate" / "features").glob("*.npz"))) == 2


def test_the_page_shows_both_tables_and_curves(statistics):
    page = "".join(fidelity_section(statistics))
    assert page.count("<table>") == 2 and page.count("<svg") == 2
    assert "Frechet distance (small-random-conv)" in page and "class shares (total variation), %" in page
    assert ">FID<" not in page


def test_the_report_of_a_run_has_the_section_and_one_of_an_older_evaluation_has_none(run_dir, config, grey_student):
    evaluate(config, run_dir)
    page = write_report(run_dir).read_text()
    assert "what such a net cannot see" in page and "not measured (evaluate.fidelity.extractor is none" in page
    assert fidelity_section({"real": {}, "synthetic": {}}) == []
