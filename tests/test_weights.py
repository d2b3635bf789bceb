from __future__ import annotations

import argparse

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dakd import weights
from dakd.config import StudentConfig
from dakd.data.sample import OSD_CLASSES
from dakd.models.encoders import TimmEncoder, import_timm
from dakd.models.mamba_vision import MambaVision
from dakd.models.zoo import build_student

TINY = dict(dim=8, in_dim=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=[8, 8, 4, 2])
STUDENT = StudentConfig(
    encoder="mamba_vision", encoder_options=TINY, decoder_channels=(8, 8, 6, 4), caft_heads=(1, 2, 2)
)


def classifier() -> MambaVision:
    torch.manual_seed(1)
    return MambaVision(**TINY, num_classes=10)


def encoder() -> MambaVision:
    torch.manual_seed(2)
    return MambaVision(**TINY, num_classes=0)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_tensors_and_metadata_come_back_as_written(tmp_path):
    path = tmp_path / "new" / "w.safetensors"
    tied = torch.randn(3, 4)
    state = {"a": tied, "b": tied.T, "c": torch.tensor(7), "d": torch.randn(2).bfloat16()}
    metadata = {"b": 0.528, "classes": ["sea", "oil"], "nested": {"step": 3}}
    weights.save_weights(path, state, metadata)
    assert same(weights.load_state(path), state)
    assert weights.read_metadata(path) == metadata
    assert [entry.name for entry in path.parent.iterdir()] == ["w.safetensors"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    weights.save_weights(path, {"a": torch.ones(2)}, {})

    def fill_up(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(weights, "save_file", fill_up)
    with pytest.raises(OSError, match="no space left"):
        weights.save_weights(path, {"a": torch.zeros(2)}, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]
    assert torch.equal(weights.load_state(path)["a"], torch.ones(2))


def test_a_reader_of_the_old_file_keeps_it_whole_while_a_new_one_is_written(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save_weights(path, {"a": torch.ones(2)}, {})
    old = path.read_bytes()
    with open(path, "rb") as reader:
        weights.save_weights(path, {"a": torch.zeros(2)}, {})
        assert reader.read() == old
    assert path.read_bytes() != old


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent"):
        weights.load_state(tmp_path / "absent.safetensors")
    path = tmp_path / "w.safetensors"
    weights.save_weights(path, {"a": torch.ones(200)}, {})
    path.write_bytes(path.read_bytes()[:-100])
    for read in (weights.load_state, weights.read_metadata):
        with pytest.raises(ValueError, match=r"w\.safetensors is not a whole safetensors file"):
            read(path)


def test_a_mismatch_lists_what_is_missing_unexpected_and_misshapen_and_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(4), "1.weight": torch.zeros(1, 3)}
    state |= {f"extra{i:02d}": torch.zeros(1) for i in range(13)}
    with pytest.raises(ValueError) as caught:
        weights.load_strict(model, state, "old.safetensors")
    message = str(caught.value)
    assert "old.safetensors do not fit Sequential" in message
    assert "1 missing:\n    1.bias" in message
    assert "0.bias: found (4,), wanted (3,)" in message
    assert "13 unexpected" in message and "extra09" in message and "extra10" not in message and "and 3 more" in message
    assert same(model.state_dict(), before)


def test_a_fitting_state_is_loaded():
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    weights.load_strict(target, source.state_dict(), "memory")
    assert same(target.state_dict(), source.state_dict())


@torch.no_grad()
def test_a_student_is_rebuilt_from_its_file_alone(tmp_path):
    path = tmp_path / "student.safetensors"
    torch.manual_seed(0)
    model = build_student(STUDENT, OSD_CLASSES.num_classes).train()
    image = torch.randn(2, 3, 50, 70)
    model(image)  # moves the statistics of the batch norms, which are part of the file
    # The checkpoint that the encoder started from is not needed any more.
    started_from = STUDENT.model_copy(update={"pretrained": "/gone/mambavision_base_1k.pth.tar"})
    weights.save_student(path, model, started_from, OSD_CLASSES, {"b": 0.528, "training_set": "real"})
    loaded, metadata = weights.load_student(path)
    assert not loaded.training and torch.equal(loaded(image), model.eval()(image))
    assert metadata["b"] == 0.528 and metadata["training_set"] == "real"
    assert metadata["classes"] == OSD_CLASSES.to_dict()
    assert StudentConfig.model_validate(metadata["student"]) == started_from


def test_weights_of_another_kind_are_no_student(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save_weights(path, {"a": torch.ones(2)}, {"kind": "jointnet"})
    with pytest.raises(ValueError, match="holds jointnet, not a student"):
        weights.load_student(path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=["plain", "with its training's command line", "from data parallel"],
)
def test_a_public_checkpoint_fills_the_encoder_without_its_classifier(tmp_path, wrap):
    path = tmp_path / "mambavision_base_1k.pth.tar"
    source = classifier()
    torch.save(wrap(source.state_dict()), path)
    target = encoder()
    weights.load_public_checkpoint(target, path)
    names = target.state_dict().keys()
    assert same(target.state_dict(), {name: source.state_dict()[name] for name in names})
    whole = MambaVision(**TINY, num_classes=10)
    weights.load_public_checkpoint(whole, path)
    assert same(whole.state_dict(), source.state_dict())


def test_a_public_checkpoint_of_another_size_is_refused(tmp_path):
    path = tmp_path / "c.pth.tar"
    torch.save({"state_dict": classifier().state_dict()}, path)
    with pytest.raises(ValueError, match=r"of another shape"):
        weights.load_public_checkpoint(MambaVision(**(TINY | {"dim": 16}), num_classes=0), path)
    state = classifier().state_dict()
    del state["levels.2.blocks.0.mixer.A_log"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"1 missing:\n    levels\.2\.blocks\.0\.mixer\.A_log"):
        weights.load_public_checkpoint(encoder(), path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("this must not be printed",))

    path = tmp_path / "c.pth.tar"
    torch.save({"state_dict": {"a": torch.ones(1)}, "hook": Harmful()}, path)
    with pytest.raises(ValueError, match="not a whole file of plain tensors"):
        weights.load_public_checkpoint(encoder(), path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds no state dict"):
        weights.load_public_checkpoint(encoder(), path)


def test_an_absent_public_checkpoint_is_named_with_its_source_and_its_licence(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        weights.load_public_checkpoint(encoder(), tmp_path / "mambavision_base_1k.pth.tar")
    message = str(caught.value)
    assert "nvidia/MambaVision-B-1K" in message and "CC BY-NC-SA" in message and "non-commercial" in message
    assert "nvidia/MambaVision-L-1K" not in message
    with pytest.raises(FileNotFoundError, match=r"mambavision_tiny_1k.*nvidia/MambaVision-L-1K"):
        weights.load_public_checkpoint(encoder(), tmp_path / "other.pth")


def test_the_pretrained_file_of_the_settings_fills_a_new_students_encoder(tmp_path):
    path = tmp_path / "c.pth.tar"
    torch.save(classifier().state_dict(), path)
    model = build_student(STUDENT, 2)
    before = model.encoder.levels[2].blocks[0].mixer.in_proj.weight.clone()
    weights.load_pretrained_encoder(model, STUDENT)
    assert torch.equal(model.encoder.levels[2].blocks[0].mixer.in_proj.weight, before)
    weights.load_pretrained_encoder(model, STUDENT.model_copy(update={"pretrained": str(path)}))
    loaded = model.encoder.levels[2].blocks[0].mixer.in_proj.weight
    assert torch.equal(loaded, classifier().levels[2].blocks[0].mixer.in_proj.weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_timm_classifiers_file_fills_the_feature_extractor(tmp_path, name):
    source = import_timm().create_model(name).state_dict()
    weights.save_weights(tmp_path / "c.safetensors", source, {})
    target = TimmEncoder(name)
    weights.load_public_checkpoint(target, tmp_path / "c.safetensors")
    values = {tensor.double().sum().item() for tensor in source.values()}
    assert all(tensor.double().sum().item() in values for tensor in target.state_dict().values())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"student": {"encoder": "resnet34", "decoder_channels": [8, 8]}}, "make no net"),
        ({"student": {"encoder_options": {"depths": [1, 1, 10**9, 1]}, "encoder": "mamba_vision"}}, "at most 8192"),
        ({"student": STUDENT.model_dump() | {"decoder_channels": [4096] * 4}}, "do not fit"),
        ({"student": None}, "make no net"),
        ({"classes": {"names": ["sea", None], "colours": 3}}, "make no net"),
    ],
    ids=["too few", "for hours", "too wide", "absent", "classes"],
)
def test_settings_that_do_not_belong_to_the_weights_are_refused_before_a_net_is_made(tmp_path, change, told):
    path = tmp_path / "student.safetensors"
    model = build_student(STUDENT, OSD_CLASSES.num_classes)
    weights.save_student(path, model, STUDENT, OSD_CLASSES, {})
    weights.save_weights(path, model.state_dict(), weights.read_metadata(path) | change)
    with pytest.raises(ValueError, match=rf"student\.safetensors.*{told}"):
        weights.load_student(path)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 5000])
def test_metadata_that_are_no_settings_are_refused(tmp_path, text):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"dakd": text})
    with pytest.raises(ValueError, match=r"the metadata of .*w\.safetensors are"):
        weights.read_metadata(path)
