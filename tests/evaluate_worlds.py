"""A run folder in miniature, a student whose every prediction is known in advance, and sets of shards, for the tests of
evaluate and report. Fixtures are imported by their conftest.py."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dakd.config import build_config, dump_config
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES, ClassTable, Sample
from dakd.data.shards import ShardSet, write_index, write_shard
from dakd.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from dakd.runtime.files import write_text
from dakd.runtime.sealed import seal_yaml, write_json

GREY_OF_CLASS = (100, 20, 60, 250, 180)


class GreyStudent(nn.Module):
    """Gives each pixel the class whose typical grey value is nearest."""

    def forward(self, image: Tensor) -> Tensor:
        grey = (image[:, :1] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255
        return -(grey - torch.tensor(GREY_OF_CLASS, dtype=torch.float32).view(1, -1, 1, 1)).abs()


def scene(key: str, seed: int, size: tuple[int, int] = (16, 20), soft: bool = False, wrong: int = 0) -> Sample:
    """Random blocks of 4 x 4 pixels with their classes' greys; the first `wrong` pixels show a land's grey instead."""
    rng = np.random.default_rng(seed)
    height, width = size
    blocks = rng.integers(0, 5, (-(-height // 4), -(-width // 4)), dtype=np.uint8)
    label = np.repeat(np.repeat(blocks, 4, axis=0), 4, axis=1)[:height, :width]
    sar = np.array(GREY_OF_CLASS, np.uint8)[label]
    sar.flat[:wrong] = GREY_OF_CLASS[4]
    if soft:
        logits = 4 * (np.arange(5)[:, None, None] == label).astype(np.float16)
        return Sample(key, sar, soft_label=logits)
    return Sample(key, sar, label=label)


def write_set(folder: Path, samples: list[Sample], classes: ClassTable = OSD_CLASSES) -> ShardSet:
    """A real set, or, of samples with soft labels, a synthetic one."""
    kind, codec = ("real", None) if samples[0].soft_label is None else ("synthetic", "fp16")
    write_shard(folder, 0, samples, classes, codec=codec)
    write_index(folder, kind=kind, classes=classes, codec=codec)
    return ShardSet(folder)


def write_images(folder: Path, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> ShardSet:
    """A set of images and labels (ids of sea and oil)."""
    samples = [Sample(f"image-{number:04d}", sar, label=label) for number, (sar, label) in enumerate(pairs)]
    return write_set(folder, samples, SOS_CLASSES)


def slick(
    seed: int, size: int = 64, looks: float = 8.0, sea: float = 110.0, step: float = 50.0, blur: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Sea under gamma speckle, an ellipse of oil darker by `step` greys somewhere in it, and its label.

    blur: the speckle is averaged over 2x2 pixels, and stretched so that it keeps its looks.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    centre, radii = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.15, 0.25, 2) * size
    label = (((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1).astype(np.uint8)
    speckle = rng.gamma(looks, 1 / looks, (size + 1, size + 1)) - 1
    if blur:
        speckle = (speckle[1:, 1:] + speckle[:-1, 1:] + speckle[1:, :-1] + speckle[:-1, :-1]) / 2
    speckle = speckle[:size, :size] + 1
    return np.clip((sea - step * label) * speckle, 0, 255).round().astype(np.uint8), label


def write_test_images(run_dir: Path, num: int) -> None:
    """The test split, of two sizes, each image with more wrong pixels than the one before; ten make an interval."""
    held_out = [scene(f"test-{i}", 10 + i, size=(16, 20) if i < 3 else (9, 13), wrong=8 * i) for i in range(num)]
    write_set(run_dir / "prepare" / "test", held_out)


@pytest.fixture
def config(tmp_path):
    return build_config(
        {"name": "tiny", "run_dir": str(tmp_path / "run"), "evaluate": {"num_pictures": 2, "batch_size": 2}}
    )


@pytest.fixture
def run_dir(config):
    """Prepared and generated sets, two students' files, curves and sample grids."""
    run_dir = config.run_path
    write_set(run_dir / "prepare" / "train", [scene(f"train-{i}", i) for i in range(4)])
    write_test_images(run_dir, 5)
    write_set(run_dir / "generate", [scene(f"syn-{i}", 20 + i, soft=True) for i in range(3)])
    for name in ("real+synthetic", "real"):
        folder = run_dir / "train_saross" / name
        write_text(folder / "student.safetensors", name)
        records = ({"step": step, "images_seen": 8 * step, "loss": 2.0 / step, "lr": 1e-4} for step in range(1, 9))
        write_text(folder / "metrics.jsonl", "".join(f"{record}\n".replace("'", '"') for record in records))
    samples = run_dir / "train_jointnet" / "stage1" / "samples"
    samples.mkdir(parents=True)
    Image.fromarray(np.full((32, 64), 90, np.uint8)).save(samples / "step-00000010.png")
    write_text(run_dir / "train_jointnet" / "stage1" / "metrics.jsonl", '{"step": 1, "images_seen": 4, "loss": 0.5}\n')
    write_json(run_dir / "balance" / "balance.json", {"b": 0.528, "computed": 0.4846})
    write_text(run_dir / "config.yaml", seal_yaml(dump_config(config)))
    return run_dir


@pytest.fixture
def grey_student(monkeypatch):
    """All weight files hold the student of grey values."""

    def load(path, device):
        return GreyStudent().eval(), {"classes": OSD_CLASSES.to_dict()}

    monkeypatch.setattr("dakd.weights.load_student", load)
    return GreyStudent().eval()
