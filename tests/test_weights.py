from __future__ import annotations

import pytest
import torch
from tiny_students import TINY_MAMBA_STUDENT

from dakd import weights
from dakd.config import StudentConfig
from dakd.data.sample import OSD_CLASSES
from dakd.models.registry import build_student

STUDENT = StudentConfig(**TINY_MAMBA_STUDENT)


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
    ("change", "message"),
    [
        ({"student": {"encoder": "resnet34", "decoder_channels": [8, 8]}}, "make no net"),
        ({"student": {"encoder_options": {"depths": [1, 1, 10**9, 1]}, "encoder": "mamba_vision"}}, "at most 8192"),
        ({"student": STUDENT.model_dump() | {"decoder_channels": [4096] * 4}}, "do not fit"),
        ({"student": None}, "make no net"),
        ({"classes": {"names": ["sea", None], "colours": 3}}, "make no net"),
    ],
    ids=["too few", "for hours", "too wide", "absent", "classes"],
)
def test_settings_that_do_not_belong_to_the_weights_are_refused_before_a_net_is_made(tmp_path, change, message):
    path = tmp_path / "student.safetensors"
    model = build_student(STUDENT, OSD_CLASSES.num_classes)
    weights.save_student(path, model, STUDENT, OSD_CLASSES, {})
    weights.save_weights(path, model.state_dict(), weights.read_metadata(path) | change)
    with pytest.raises(ValueError, match=rf"student\.safetensors.*{message}"):
        weights.load_student(path)
