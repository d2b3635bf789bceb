"""SAM-OIL through the steps: its loss on real and synthetic samples, a training, its resuming and an evaluation."""

from __future__ import annotations

import pytest
import torch
from fixed_logits import BareStudent
from tiny_sam import save_tiny_sam, tiny_sam_oil
from worlds import with_pairs

from dakd.config import StudentLossConfig
from dakd.data.batch import Batch
from dakd.data.sample import IGNORE_INDEX
from dakd.evaluate.evaluate import evaluate
from dakd.runtime.runlog import read_records
from dakd.runtime.tensor_files import load_state
from dakd.train.batch_loss import StudentLoss, with_teachers_labels
from dakd.train.dry_run import describe_saross
from dakd.train.saross import StudentTraining, student_folder, train_saross

BATCHES = {"micro_batch": 2, "global_batch": 2}


@pytest.fixture(scope="module")
def tiny_student(tmp_path_factory):
    return tiny_sam_oil(save_tiny_sam(tmp_path_factory.mktemp("sam") / "tiny"))


def test_synthetic_samples_are_labelled_by_the_teachers_likeliest_class():
    label = torch.randint(0, 3, (3, 4, 4), dtype=torch.uint8)
    z = torch.randn(2, 3, 4, 4)
    row = torch.tensor([1, -1, 0])
    labelled = with_teachers_labels(label, z.half(), row)
    assert labelled.dtype == torch.uint8 and torch.equal(labelled[1], label[1])
    best = z.half().argmax(1).byte()
    assert torch.equal(labelled[0], best[1]) and torch.equal(labelled[2], best[0])
    codes = (10 * (z.amax(1, keepdim=True) - z)).round().clamp(max=255).byte()
    assert torch.equal(with_teachers_labels(label, codes, row)[2], codes[0].argmin(0).byte())
    assert torch.equal(with_teachers_labels(label, None, row), label)


class OwnLoss(BareStudent):
    """Stands in for a net with a loss of its own; keeps what it was given."""

    has_own_loss = True

    def loss_of(self, image, label):
        self.image, self.label = image, label
        return {"loss": torch.ones(len(image), requires_grad=True), "detector": torch.zeros(len(image))}


def test_a_net_with_a_loss_of_its_own_gets_images_and_hard_labels():
    label = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    label[0, 0, :3] = torch.tensor([7, IGNORE_INDEX, 8], dtype=torch.uint8)
    label[1] = IGNORE_INDEX
    teacher = torch.randn(1, 3, 4, 4).half()
    image = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    batch = Batch(image, torch.arange(2), label, teacher, teacher_row=torch.tensor([-1, 0]))
    net = OwnLoss(num_classes=3, multiple=1)
    losses = StudentLoss(net, StudentLossConfig(), 0, torch.contiguous_format)(batch)
    assert set(losses) == {"loss", "detector", "num_invalid_labels"} and losses["num_invalid_labels"] == 2
    assert torch.equal(net.label[0], label[0]) and torch.equal(net.label[1], teacher[0].argmax(0).byte())
    assert net.image.shape == (2, 3, 4, 4) and net.image[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_student):
    config = with_pairs(tmp_path_factory.mktemp("sam_oil"), student=tiny_student, steps=3, **BATCHES)
    train_saross(config, ("real+synthetic",))
    return config


@pytest.mark.slow
def test_sam_oil_trains_and_sam_itself_stays_as_it_is(trained):
    folder = student_folder(trained, "real+synthetic")
    records = read_records(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(record["detector"] > 0 and record["grad"] > 0 for record in records)
    start = StudentTraining(trained, "real+synthetic").build(True).net.state_dict()
    raw = load_state(folder / "student_raw.safetensors")
    moved = {name for name, value in raw.items() if not torch.equal(value, start[name])}
    assert any(name.startswith("detector.") for name in moved) and "masks.adapter.expand.weight" in moved
    assert "masks.sam.vision_encoder.neck.conv1.weight" in raw
    assert not any(name.startswith("masks.sam.") for name in moved)


@pytest.mark.slow
def test_resume_is_bitwise_equal_though_the_detector_draws_proposals(trained, tiny_student, tmp_path):
    for steps in (2, 3):  # no less than the warm-up
        config = with_pairs(tmp_path, student=tiny_student, steps=steps, **BATCHES)
        train_saross(config, ("real+synthetic",))
    resumed, straight = (
        load_state(student_folder(c, "real+synthetic") / "student_raw.safetensors") for c in (config, trained)
    )
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())


@pytest.mark.slow
def test_sam_oil_is_evaluated_without_sams_folder(trained, tiny_student, monkeypatch):
    monkeypatch.setattr("dakd.models.rivals.sam_oil.net.read_sam_config", None)
    scores = evaluate(trained).scores["real+synthetic"]
    assert sum(map(sum, scores.to_dict()["counts"])) == 4 * 64 * 64


def test_dry_run_tells_the_cost_of_the_encoders(tmp_path, tiny_student):
    config = with_pairs(tmp_path, student=tiny_student, **BATCHES)
    text = describe_saross(config)
    assert "SAM-OIL, fasterrcnn_mobilenet_v3_large_320_fpn, crop 64 x 64" in text
    line = next(line for line in text.splitlines() if line.startswith("student "))
    assert "0.00 GMAC" not in line and "detections" in line


def test_training_without_sams_weights_says_what_to_set(tmp_path, tiny_student):
    config = with_pairs(tmp_path, student=tiny_student | {"pretrained": str(tmp_path / "nowhere")})
    with pytest.raises(FileNotFoundError, match="no SAM at"):
        StudentTraining(config, "real").build(True)
