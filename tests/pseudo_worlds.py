"""A toy run with a student of real images and images without labels, as the tests of self-training need it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import torch
from worlds import toy_config

from dakd.config import Config, build_config
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.data.shards import write_shards
from dakd.models.registry import build_student
from dakd.models.student import StudentNet
from dakd.weights import save_student

SIZES = ((32, 32), (32, 32), (32, 32), (33, 47), (32, 32))


def run_with(folder: Path, labelling: dict | None = None, **train: object) -> Config:
    """A toy run of 32 x 32 scenes in `folder`; labelling: settings of pseudo_label, train: of train_saross."""
    tree = toy_config(folder / "run").model_dump(mode="json")
    tree["pseudo_label"] |= labelling or {}
    tree["train_saross"] |= {"crop": [32, 32], "training_sets": ["real", "real+pseudo"]} | train
    return build_config(tree)


def with_unlabelled(config: Config, sizes=SIZES, garbage: int | None = None) -> Path:
    """Write the run's images without labels; garbage: the seed of labels that mean nothing."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    labels = [None] * len(images)
    if garbage is not None:
        noise = np.random.default_rng(garbage)
        labels = [noise.integers(0, 5, size, dtype=np.uint8) for size in sizes]
    samples = [Sample(f"image-{i}", image, label) for i, (image, label) in enumerate(zip(images, labels))]
    return write_shards(config.run_path / "prepare" / "unlabelled", samples, OSD_CLASSES, shard_size=2)


def with_student(config: Config, seed: int = 0) -> StudentNet:
    """Save an untrained student, sure of some pixels and not of others, as the run's student of real images."""
    torch.manual_seed(seed)
    net = build_student(config.train_saross.student, 5)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    path = config.run_path / "train_saross" / "real" / "student.safetensors"
    save_student(path, net, config.train_saross.student, OSD_CLASSES, {"training_set": "real"})
    return net.eval()


def killed_in_the_second_shard(config: Config) -> None:
    """The step in a process that is killed while it writes its second shard."""
    from dakd.pseudo_label import write_set
    from dakd.pseudo_label.step import pseudo_label

    def write(folder: Path, number: int, *rest: object, **options: object) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write_shard(folder, number, *rest, **options)

    write_shard, write_set.write_shard = write_set.write_shard, write
    pseudo_label(config)
