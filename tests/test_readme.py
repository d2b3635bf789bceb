"""The documents' Python runs as it stands, their commands are commands, and their links and paths lead somewhere."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
import torch
import yaml
from documents import ROOT, anchors, command_lines, documents, links, named_paths, named_settings, python_blocks
from front_door import SNIPPETS
from PIL import Image
from worlds import teacher_file, with_teacher

import dakd
from dakd.cli import COMMANDS, build_parser
from dakd.config.explain import settings
from dakd.data.sample import OSD_CLASSES

TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in documents()}
COMMAND_LINES = sorted({line for text in TEXTS.values() for line in command_lines(text) if line.startswith("dakd ")})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the snippets find: a student, a teacher and an image."""
    torch.manual_seed(0)
    tiny = dict(encoder="resnet18", encoder_options={"width": 4}, decoder_channels=(8, 8, 8, 8), caft_heads=(1, 1, 1))
    dakd.Student(dakd.create_student(num_classes=5, **tiny), OSD_CLASSES).save(tmp_path / "student.safetensors")
    teacher_file(with_teacher(tmp_path / "run")).rename(tmp_path / "weights_ema.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", TEXTS)
def test_every_row_of_a_table_has_a_line_of_its_own(name):
    rules = [line.strip() for line in TEXTS[name].splitlines() if re.search(r"\|\s*:?---", line)]
    assert all(re.fullmatch(r"(\|\s*:?-+:?\s*)+\|", line) for line in rules)


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


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "README.md" and python_blocks(TEXTS[name])])
def test_the_python_of_a_document_runs_from_its_first_block_to_its_last(name, folder):
    found = {"__name__": "snippet"}
    for block in python_blocks(TEXTS[name]):
        exec(compile(block, name, "exec"), found)
    results = [value for value in found.values() if torch.is_tensor(value) and value.is_floating_point()]
    assert all(value.isfinite().all() for value in results)
    if name == "dakd/data/README.md":
        assert len(found["shards"]) == 20 and found["sample"].key == "scene-3"
        assert found["batch"].image.shape == (4, 1, 32, 32) and found["batch"].label.shape == (4, 32, 32)
    if name == "dakd/kernels/README.md":
        assert found["losses"].ce.shape == (2,) and found["y_t"].shape == (2, 5, 64, 64)
        assert found["state"].x.shape == (2, 1, 64, 64) and found["state"].y.isfinite().all()


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_line_names_a_command_and_options_that_there_are(line):
    _, name, *arguments = shlex.split(line)
    if name == "STEP" or "--help" in arguments:
        return
    assert name in COMMANDS, line
    parser = build_parser(name)
    (parser.parse_args if COMMANDS[name].is_group else parser.parse_intermixed_args)(arguments)


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_to_a_file_or_a_heading(name):
    here = (ROOT / name).parent
    for target in links(TEXTS[name]):
        path, _, anchor = target.partition("#")
        found = (here / path).resolve() if path else ROOT / name
        assert found.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(found.read_text()), f"{name} links to {target}"


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_and_target_of_make_that_a_document_names_exists(name):
    missing = [path for path in named_paths(TEXTS[name]) if not (ROOT / path).exists()]
    assert missing == []
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [line.split()[1] for line in command_lines(TEXTS[name]) if re.match(r"make [a-z]", line)]
    named += re.findall(r"`make ([a-z0-9-]+)", TEXTS[name])
    assert set(named) <= targets


@pytest.mark.parametrize("name", TEXTS)
def test_every_setting_that_a_document_names_exists(name):
    for key in named_settings(TEXTS[name]):
        assert settings(key), key


def test_the_readme_is_short():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 180 and len(TEXTS["README.md"].split()) <= 1500


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dakd.__version__ and citation["cff-version"] == "1.2.0"
    assert citation["preferred-citation"]["url"] in TEXTS["README.md"]


def test_a_broken_link_a_stale_path_a_lost_option_and_an_old_setting_would_be_seen():
    text = "# A b\n[x](gone.md#a-b) [y](https://a.b) `dakd/gone.py` `dakd/OP.py`\n"
    text += "```sh\ndakd balance \\\n  --cfg a  # c\n```\n"
    assert links(text) == ["gone.md#a-b"] and anchors(text) == {"a-b"} and named_paths(text) == ["dakd/gone.py"]
    assert [line.split() for line in command_lines(text)] == [["dakd", "balance", "--cfg", "a"]]
    assert named_settings("`data.gone=1` data.py dakd.data.batch") == ["data.gone"]
    assert command_lines("x\n\n    dakd stop a\n\n    dakd ema  # b\n") == ["dakd stop a", "dakd ema"]
