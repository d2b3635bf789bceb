"""The README's Python runs as it stands, and its commands are commands."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
import torch
from front_door import README, SNIPPETS
from PIL import Image
from worlds import teacher_file, with_teacher

import dakd
from dakd.cli import COMMANDS, build_parser
from dakd.data.sample import OSD_CLASSES

COMMAND_LINES = [line.partition(" # ")[0].strip() for line in README.splitlines() if re.match(r"    dakd [a-z]", line)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the README's snippets find: a student, a teacher and an image."""
    torch.manual_seed(0)
    tiny = dict(encoder="resnet18", encoder_options={"width": 4}, decoder_channels=(8, 8, 8, 8), caft_heads=(1, 1, 1))
    dakd.Student(dakd.create_student(num_classes=5, **tiny), OSD_CLASSES).save(tmp_path / "student.safetensors")
    teacher_file(with_teacher(tmp_path / "run")).rename(tmp_path / "weights_ema.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_an_example_for_each_kind_of_user():
    used = [name for snippet in SNIPPETS for name in re.findall(r"dakd\.(\w+)", snippet)]
    assert len(SNIPPETS) == 4 and set(used) <= set(dakd.__all__)
    assert set(used) >= {"load_student", "load_teacher", "create_student", "create_joint_net", "ShardSet", "kernels"}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: re.findall(r"dakd\.(\w+)", text)[0])
def test_a_snippet_runs_as_it_stands(snippet, folder):
    found = {"__name__": "snippet"}
    exec(compile(snippet, "README.md", "exec"), found)
    if "result" in found:
        assert found["result"].label.shape == (90, 70) and Image.open("overlay.png").size == (70, 90)
    if "shards" in found:
        assert len(found["shards"]) == 8 and found["shards"][0].sar.shape == (64, 64)
    if "logits" in found:
        assert found["logits"].shape == (2, 2, 256, 256) and (folder / "mine" / "README.md").exists()
        again = dakd.Student.from_pretrained(folder / "mine")
        assert again.classes == found["classes"]
    if "y" in found:
        assert found["y"].shape == (2, 32, 100) and found["y"].isfinite().all()


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_line_names_a_command_and_options_that_there_are(line):
    _, name, *arguments = shlex.split(line)
    if name == "STEP" or "--help" in arguments:
        return
    assert name in COMMANDS, line
    parser = build_parser(name)
    (parser.parse_args if COMMANDS[name].is_group else parser.parse_intermixed_args)(arguments)
