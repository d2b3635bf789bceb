"""Weights and checkpoints are loaded as they were saved, or refused by name; a pickle is never executed."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
import torch
from fuzz.mutations import Executed, mutated_bytes, mutated_tree, planted_pickle, safetensors_with_a_lying_header
from fuzz.verdict import fuzzed, judge
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from worlds import toy_config, with_ddpm

from dakd.data.sample import OSD_CLASSES
from dakd.models.jointnet import SARJointNet
from dakd.models.pretrained import load_public_checkpoint
from dakd.models.registry import build_student
from dakd.runtime.sealed import parse_sealed, seal
from dakd.runtime.tensor_files import save_weights
from dakd.train.checkpoint import load_latest, save_checkpoint
from dakd.weights import load_student, load_teacher, save_student

IDENTITY = {"seed": 0, "optimizer": {"lr": 0.1, "steps": 4}}


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("student") / "student.safetensors"
    cfg = toy_config(file.parent).train_saross.student
    save_student(file, build_student(cfg, 5), cfg, OSD_CLASSES, {"weights": "ema"})
    return file.read_bytes()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    cfg = toy_config(file.parent).train_jointnet
    facts = {"kind": "jointnet", "unet": cfg.unet.model_dump(mode="json"), "num_classes": 5, "b": 0.4,
             "schedule": cfg.schedule.model_dump(mode="json"), "classes": OSD_CLASSES.to_dict()}  # fmt: skip
    net = SARJointNet.from_config(cfg.unet, 5)
    save_weights(file, net.state_dict(), facts | {"label_loss": "l2", "sigma_data": 0.2})
    return file.read_bytes()


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory) -> bytes:
    config = with_ddpm(tmp_path_factory.mktemp("ddpm"))
    return (config.run_path / "train_jointnet" / "ddpm" / "weights_ema.safetensors").read_bytes()


def with_metadata(data: bytes, change) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    facts = parse_sealed(header["__metadata__"]["dakd"].encode(), "the fixture")
    header["__metadata__"]["dakd"] = seal(json.dumps(change(facts)))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_bytes_of_a_weights_file(request, tmp_path, kind, data):
    original, file = request.getfixturevalue(kind), tmp_path / "weights.safetensors"
    # The header is a few per cent of the file, and all that can be wrong with it.
    (length,) = struct.unpack_from("<Q", original)
    head = data.draw(mutated_bytes(original[: 8 + length]))
    file.write_bytes(data.draw(st.sampled_from((head + original[8 + length :], head))))
    load = load_student if kind == "student" else load_teacher
    assert judge("weights, bytes", lambda: load(file) and None, file.name) in ("read", "refused")


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("kind", ["student", "teacher", "ddpm"])
def test_values_of_a_weights_file(request, tmp_path, kind, data):
    """Bytes of the tensors, which any net would take: a file with one other value must be refused."""
    original, file = request.getfixturevalue(kind), tmp_path / "weights.safetensors"
    (length,) = struct.unpack_from("<Q", original)
    content = bytearray(original)
    for place in data.draw(st.lists(st.integers(8 + length, len(original) - 1), min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    load = load_student if kind == "student" else load_teacher
    outcome = judge("weights, values", lambda: load(file) and None, file.name)
    assert outcome == ("read" if bytes(content) == original else "refused")


@fuzzed
@given(data=st.data())
def test_header_of_a_weights_file(student, tmp_path, data):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(data.draw(safetensors_with_a_lying_header(student)))
    assert judge("weights, header", lambda: load_student(file) and None, file.name) in ("read", "refused")


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("kind", ["student", "teacher", "ddpm"])
def test_settings_in_a_weights_file(request, tmp_path, kind, data):
    file = tmp_path / "weights.safetensors"
    original = request.getfixturevalue(kind)
    file.write_bytes(with_metadata(original, lambda facts: data.draw(mutated_tree(facts))))
    load = load_student if kind == "student" else load_teacher
    assert judge("weights, settings", lambda: load(file) and None, file.name) in ("read", "refused")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (1, 2):
        state = {"master.a": torch.arange(6.0).reshape(2, 3) + step, "ema.a": torch.ones(2, 3)}
        save_checkpoint(folder, step, state, {"identity": IDENTITY, "position": 4 * step}, keep=2)
    return folder


@fuzzed
@given(data=st.data())
def test_bytes_of_a_checkpoint(checkpoints, tmp_path, data):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoints, folder)
    for number in data.draw(st.sampled_from(((2,), (1, 2)))):
        target = folder / f"step-{number:08d}"
        file = target / data.draw(st.sampled_from(("state.json", "state.safetensors")))
        if file.suffix == ".json" and data.draw(st.booleans()):
            file.write_text(json.dumps(data.draw(mutated_tree(json.loads(file.read_text())))))
        else:
            file.write_bytes(data.draw(mutated_bytes(file.read_bytes())))

    def resume() -> str:
        state, facts = load_latest(folder, IDENTITY)
        step = facts["step"]
        assert torch.equal(state["master.a"], torch.arange(6.0).reshape(2, 3) + step), "a damaged state was accepted"
        assert facts["position"] == 4 * step and step in (1, 2), "damaged facts were accepted"
        return "read" if step == 2 else "skipped"

    judge("checkpoints", resume, folder.name)


@fuzzed
@given(data=st.data())
def test_public_checkpoints_with_code_in_them(tmp_path, data):
    file, marker = tmp_path / "mambavision_tiny_1k.pth.tar", tmp_path / "executed"
    net = nn.Linear(2, 2)
    net.classifier_prefixes = ("head.",)  # of an encoder: tensors that it leaves out
    kind = data.draw(st.sampled_from(("plain", "pickle", "zipped", "beside")))
    if kind == "pickle":
        content = planted_pickle(marker)
    else:
        planted = {"weight": Executed(marker)} if kind == "zipped" else {"args": Executed(marker)}
        torch.save({"state_dict": net.state_dict()} | ({} if kind == "plain" else planted), file)
        content = file.read_bytes()
    file.write_bytes(data.draw(mutated_bytes(content)) if data.draw(st.booleans()) else content)
    judge("public checkpoints", lambda: load_public_checkpoint(net, file), file.name)
    assert not marker.exists()
