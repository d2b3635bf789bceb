"""The published datasets, where DAKD_REAL_DATA names a folder with osd/ and sos/: counts, sizes, shares, b."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dakd.config import PrepareConfig, build_config
from dakd.data.prepare import prepare
from dakd.data.readers import open_dataset
from dakd.data.shards import ShardSet

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("DAKD_REAL_DATA" not in os.environ, reason="DAKD_REAL_DATA is unset; it names the real images"),
]


def root(name: str) -> str:
    return str(Path(os.environ["DAKD_REAL_DATA"]) / name)


@pytest.mark.parametrize(("sensor", "num_train", "num_test"), [("palsar", 776, 194), ("sentinel", 839, 210)])
def test_sos_has_its_counts_and_oil_is_dark_with_the_default_polarity_alone(sensor, num_train, num_test):
    dataset = open_dataset(PrepareConfig(dataset="sos", root=root("sos"), sensor=sensor))
    assert dataset.problems() == []
    assert (len(dataset.entries("train")), len(dataset.entries("test"))) == (num_train, num_test)
    dataset.check()
    with pytest.raises(ValueError, match=r"set prepare\.polarity to oil_is_white"):
        open_dataset(PrepareConfig(dataset="sos", root=root("sos"), sensor=sensor, polarity="oil_is_black")).check()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sensor", "oil_shares", "b"), [("palsar", (0.1936, 0.1674), 0.4369), ("sentinel", (0.2863, 0.3634), 0.4652)]
)
def test_sos_shares_and_b_are_those_measured_directly(tmp_path, sensor, oil_shares, b):
    settings = {"dataset": "sos", "root": root("sos"), "sensor": sensor}
    result = prepare(build_config({"name": "sos", "prepare": settings}), tmp_path)
    for split, share in zip(("train", "test"), oil_shares):
        index = ShardSet(result.splits[split]).index
        assert list(index.sizes) == ["256x256"]
        assert index.class_pixel_shares[1] == pytest.approx(share, abs=1e-3)
    assert result.report["splits"]["train"]["balancing_factor"] == pytest.approx(b, abs=1e-4)


@pytest.mark.slow
def test_osd_counts_sizes_shares_and_off_palette_pixels(tmp_path):
    settings = {"dataset": "osd", "root": root("osd")}
    result = prepare(build_config({"name": "osd", "prepare": settings}), tmp_path)
    indexes = [ShardSet(result.splits[split]).index for split in ("train", "test")]
    assert [index.sizes for index in indexes] == [{"650x1250": 56}, {"650x1250": 27}]
    pixels = np.sum([index.class_pixels for index in indexes], axis=0)
    assert pixels[3] / pixels.sum() == pytest.approx(0.000126, abs=5e-6)
    # Of the four files of the official test split with such pixels (337 together) two are in this part of it.
    assert result.report["off_palette"] == {"train/img_0038.png": 154, "train/img_0054.png": 60}
    assert result.report["splits"]["train"]["balancing_factor"] == pytest.approx(0.4853, abs=1e-4)
