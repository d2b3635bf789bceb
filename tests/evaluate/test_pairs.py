"""All comparisons of two sets of pairs, and their text."""

from __future__ import annotations

import re

import pytest
from evaluate_worlds import slick, write_images

from dakd.config import EvaluateConfig
from dakd.evaluate.extractors import open_extractor
from dakd.evaluate.pairs import compare_pairs, format_pairs


@pytest.fixture
def comparison(config, tmp_path):
    config = config.model_copy(update={"evaluate": EvaluateConfig(fidelity={"extractor": "small", "bootstrap": 40})})
    real = write_images(tmp_path / "real", [slick(seed, 32) for seed in range(24)])
    synthetic = write_images(tmp_path / "synthetic", [slick(seed, 32, looks=4.0) for seed in range(100, 120)])
    extractor = open_extractor(config.evaluate.fidelity, "cpu")
    return compare_pairs(config, tmp_path / "run", real, synthetic, extractor, None)


def test_the_text_shows_every_number_with_its_interval_and_n(comparison, tmp_path):
    text = format_pairs(comparison)
    number = r"-?[\d.e-]+"
    interval = f"{number} to {number}"
    assert re.search(rf"equivalent looks of the sea, dB( +{number}){{3}} +{interval} +{number}", text)
    assert re.search(rf"Frechet distance \(small-random-conv\) +{number} +{interval} +20\n", text)
    assert "24 real and 20 synthetic images of 32x32 pixels" in text
    assert "between two halves of the real images" in text and "40 resamples" in text
    assert len(list((tmp_path / "run" / "evaluate" / "features").glob("*.npz"))) == 2


def test_the_text_says_that_few_images_make_intervals_narrow(comparison):
    text, note = format_pairs(comparison), "images are few: the intervals are too narrow (see"
    assert text.count(f"20 {note} dakd/metrics/bootstrap.py); expected at least 30") == 2  # physics and features
    for measure in comparison["physics"]["measures"].values():
        measure["num_bearing"] = 30
    comparison["fidelity"]["num_images"] = 30
    assert note not in format_pairs(comparison)


def test_the_text_shows_the_statistics_of_both_sets_and_the_agreement(comparison):
    text = format_pairs(comparison | {"synthetic": comparison["real"], "agreement": {"miou": 0.8125}})
    share = f"{100 * comparison['real']['shares']['oil']:.2f}"
    assert re.search(rf"share of oil, % +{share} +{share}", text)
    assert "mIoU 81.25 %" in text
    assert "no student was trained on real pairs alone" in format_pairs(comparison)


def test_the_text_claims_no_intervals_where_there_are_none(config, tmp_path):
    real, synthetic = (write_images(tmp_path / str(at), [slick(at + i, 32) for i in range(6)]) for at in (0, 100))
    text = format_pairs(compare_pairs(config, tmp_path / "run", real, synthetic, None, None))
    assert "No intervals: expected at least 10 images of each set" in text and "resamples" not in text
