from __future__ import annotations

import argparse

import pytest
import torch
from tiny_students import TINY_MAMBA, TINY_MAMBA_STUDENT

from dakd.config import StudentConfig
from dakd.models.encoders import TimmEncoder, import_timm
from dakd.models.mamba_vision import MambaVision
from dakd.models.pretrained import load_public_checkpoint
from dakd.models.registry import build_student
from dakd.runtime.tensor_files import save_weights


def classifier() -> MambaVision:
    torch.manual_seed(1)
    return MambaVision(**TINY_MAMBA, num_classes=10)


def encoder() -> MambaVision:
    torch.manual_seed(2)
    return MambaVision(**TINY_MAMBA, num_classes=0)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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
    load_public_checkpoint(target, path)
    names = target.state_dict().keys()
    assert same(target.state_dict(), {name: source.state_dict()[name] for name in names})
    whole = MambaVision(**TINY_MAMBA, num_classes=10)
    load_public_checkpoint(whole, path)
    assert same(whole.state_dict(), source.state_dict())


def test_a_folder_is_no_public_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="is a folder; give the file in it with the weights of the encoder, MambaV"):
        load_public_checkpoint(encoder(), tmp_path)


def test_a_public_checkpoint_of_another_size_is_refused(tmp_path):
    path = tmp_path / "c.pth.tar"
    torch.save({"state_dict": classifier().state_dict()}, path)
    with pytest.raises(ValueError, match=r"of another shape"):
        load_public_checkpoint(MambaVision(**(TINY_MAMBA | {"dim": 16}), num_classes=0), path)
    state = classifier().state_dict()
    del state["levels.2.blocks.0.mixer.A_log"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"1 missing:\n    levels\.2\.blocks\.0\.mixer\.A_log"):
        load_public_checkpoint(encoder(), path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("this must not be printed",))

    path = tmp_path / "c.pth.tar"
    torch.save({"state_dict": {"a": torch.ones(1)}, "hook": Harmful()}, path)
    with pytest.raises(ValueError, match="not a whole file of plain tensors"):
        load_public_checkpoint(encoder(), path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds no state dict"):
        load_public_checkpoint(encoder(), path)


def test_an_absent_public_checkpoint_is_named_with_its_source_and_its_licence(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_public_checkpoint(encoder(), tmp_path / "mambavision_base_1k.pth.tar")
    message = str(caught.value)
    assert "nvidia/MambaVision-B-1K" in message and "CC BY-NC-SA" in message and "non-commercial" in message
    assert "nvidia/MambaVision-L-1K" not in message
    with pytest.raises(FileNotFoundError, match=r"mambavision_tiny_1k.*nvidia/MambaVision-L-1K"):
        load_public_checkpoint(encoder(), tmp_path / "other.pth")


def test_the_pretrained_file_of_the_settings_fills_a_new_students_encoder(tmp_path):
    path = tmp_path / "c.pth.tar"
    torch.save(classifier().state_dict(), path)
    model = build_student(StudentConfig(**TINY_MAMBA_STUDENT), 2)
    before = model.encoder.levels[2].blocks[0].mixer.in_proj.weight.clone()
    model.load_pretrained(None)
    assert torch.equal(model.encoder.levels[2].blocks[0].mixer.in_proj.weight, before)
    model.load_pretrained(str(path))
    loaded = model.encoder.levels[2].blocks[0].mixer.in_proj.weight
    assert torch.equal(loaded, classifier().levels[2].blocks[0].mixer.in_proj.weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_timm_classifiers_file_fills_the_feature_extractor(tmp_path, name):
    source = import_timm().create_model(name).state_dict()
    save_weights(tmp_path / "c.safetensors", source, {})
    target = TimmEncoder(name)
    load_public_checkpoint(target, tmp_path / "c.safetensors")
    values = {tensor.double().sum().item() for tensor in source.values()}
    assert all(tensor.double().sum().item() in values for tensor in target.state_dict().values())
