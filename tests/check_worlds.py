"""Experiments and datasets for the tests of `dakd check`."""

from __future__ import annotations

import numpy as np
from PIL import Image
from worlds import toy_config

from dakd.check.check import check
from dakd.config import Config, build_config


def toy(tmp_path, **changes) -> Config:
    """An experiment that every step accepts, with settings of sections changed: section__key=value."""
    tree = toy_config(tmp_path / "run").model_dump(mode="json")
    tree["train_jointnet"]["crop"] = tree["generate"]["size"] = [32, 32]
    for key, value in changes.items():
        node, *path = key.split("__")
        place = tree
        for name in (node, *path)[:-1]:
            place = place[name]
        place[(node, *path)[-1]] = value
    return build_config(tree)


def refusals(config: Config) -> dict[str, str]:
    """By topic, joined."""
    texts: dict[str, str] = {}
    for finding in check(config):
        if finding.level == "refused":
            texts[finding.topic] = f"{texts.get(finding.topic, '')}{finding.text}\n"
    return texts


def folder(root, splits=("train", "test"), count=6, mask_value=1, size=(32, 32)) -> dict:
    """The settings of a dataset with masks of two classes."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros(size, np.uint8)
            mask[4:9] = mask_value
            Image.fromarray(rng.integers(0, 255, size).astype(np.uint8)).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    return {"dataset": "folder", "root": str(root), "classes": {"sea": [0, 0, 0], "oil": [0, 255, 255]}}
