from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dakd.config import StudentConfig
from dakd.data.sample import IGNORE_INDEX, OSD_CLASSES
from dakd.models.registry import build_student
from dakd.models.rivals.sam_oil import net as sam_oil_net
from dakd.models.rivals.sam_oil.masks import SamMasks, read_sam_config
from dakd.models.rivals.sam_oil.net import SamOil, fuse_masks, mask_loss
from dakd.runtime.tensor_files import read_metadata
from dakd.weights import load_student, save_student


class TwoBoxes(nn.Module):
    """A detector that finds a ship within a slick, and a third thing of which it is not sure."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.targets: list = []

    def forward(self, image):
        boxes = torch.tensor([[2.0, 2, 20, 20], [6, 6, 10, 10], [0, 0, 30, 30]])
        found = {"boxes": boxes, "labels": torch.tensor([1, 3, 4]), "scores": torch.tensor([0.9, 0.6, 0.1])}
        return [found for _ in image]

    def training_loss(self, image, targets):
        self.targets = targets
        return self.weight * image.new_tensor([float(len(target["boxes"])) for target in targets])


class WholeBoxes(nn.Module):
    """Stands in for SAM: the mask of a box is the box, and it counts what it was asked for."""

    def embed(self, image):
        return torch.zeros(len(image), 1)

    def forward(self, embedding, boxes, size):
        y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
        x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
        return torch.where((x > x0) & (x < x1) & (y > y0) & (y < y1), 4.0, -4.0)


def stand_in(sam_folder, **settings) -> SamOil:
    cfg = StudentConfig(
        name="sam_oil", encoder=f"{__name__}:TwoBoxes", pretrained=str(sam_folder), sam_oil=settings
    )
    net = SamOil.from_config(cfg, 5).eval()
    net.masks = WholeBoxes()
    return net


def test_boxes_become_masks_and_masks_one_class_map(sam_folder):
    wanted = torch.zeros(32, 32, dtype=torch.int64)
    wanted[2:20, 2:20] = 1
    by_score = stand_in(sam_folder)(torch.zeros(2, 3, 32, 32))
    assert by_score.shape == (2, 5, 32, 32) and torch.equal(by_score.argmax(1)[1], wanted)
    wanted[6:10, 6:10] = 3
    ships_first = stand_in(sam_folder, order=(3, 1))(torch.zeros(1, 3, 32, 32))
    assert torch.equal(ships_first.argmax(1)[0], wanted)
    unsure = stand_in(sam_folder, order=(3, 1), min_score=0.05)(torch.zeros(1, 3, 32, 32)).argmax(1)[0]
    assert unsure[25, 25] == 4 and torch.equal(unsure[2:20, 2:20], wanted[2:20, 2:20])


def test_the_loss_is_on_the_objects_of_the_labels(sam_folder, monkeypatch):
    label = torch.zeros(3, 32, 32, dtype=torch.uint8)
    label[0, 2:6, 3:9] = 2
    label[0, 20:30, 20:30] = 1
    label[2] = IGNORE_INDEX
    label[2, 0, 0] = 77
    net = stand_in(sam_folder)
    losses = net.loss_of(torch.zeros(3, 3, 32, 32), label)
    found = [(t["boxes"].tolist(), t["labels"].tolist()) for t in net.detector.targets]
    assert found == [([[20, 20, 30, 30], [3, 2, 9, 6]], [1, 2]), ([], []), ([], [])]
    # The masks of the true boxes are these rectangles: what remains is what a logit of 4 lacks of certainty.
    assert losses["detector"].tolist() == [2, 0, 0] and losses["mask"][1:].tolist() == [0, 0]
    assert 0 < losses["mask"][0] < 0.5
    torch.testing.assert_close(losses["loss"], losses["detector"] + losses["mask"])
    monkeypatch.setattr(sam_oil_net, "_MAX_MASKS", 1)  # one of the two, drawn
    one = net.loss_of(torch.zeros(3, 3, 32, 32), label)
    assert torch.equal(one["detector"], losses["detector"]) and 0 < one["mask"][0] != losses["mask"][0]


def test_a_sample_without_labels_has_no_loss(sam_folder, tiny_student):
    torch.manual_seed(0)
    net = build_student(StudentConfig(**tiny_student), 5)
    label = torch.stack([torch.full((64, 64), IGNORE_INDEX), torch.zeros(64, 64)]).to(torch.uint8)
    losses = net.train().loss_of(torch.randn(2, 3, 64, 64), label)
    assert losses["loss"][0] == 0 and losses["detector"][1] > 0 and losses["mask"][1] == 0
    losses["loss"].sum().backward()
    # What one rank has no objects for takes part with a gradient of zero.
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)


def test_mask_loss_is_bce_and_dice_of_each_mask():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    masks = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.4
    p, y = logits.sigmoid().flatten(1), masks.float().flatten(1)
    dice = 1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)
    wanted = F.binary_cross_entropy(p, y) + dice.mean()
    torch.testing.assert_close(mask_loss(logits, masks), wanted)
    assert mask_loss(torch.full((1, 3, 3), 50.0), torch.ones(1, 3, 3, dtype=torch.bool)) < 1e-6


def test_the_adapter_learns_the_masks_of_true_boxes(sam_folder):
    torch.manual_seed(0)
    net = stand_in(sam_folder)
    net.masks = SamMasks(read_sam_config(sam_folder), adapter_channels=8)
    net.masks.load_pretrained(sam_folder)
    image = torch.randn(1, 3, 32, 32)
    label = torch.zeros(1, 32, 32, dtype=torch.uint8)
    label[0, 4:28, 4:28] = 1
    optimizer = torch.optim.Adam(net.masks.adapter.parameters(), lr=0.03)
    history = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = net.loss_of(image, label)["mask"].sum()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]


def test_a_file_rebuilds_the_student_without_sams_folder(sam_folder, tiny_student, tmp_path, monkeypatch):
    cfg = StudentConfig(**tiny_student)
    torch.manual_seed(0)
    net = build_student(cfg, 5)
    net.load_pretrained(cfg.pretrained)
    torch.nn.init.normal_(net.masks.adapter.expand.weight)
    save_student(tmp_path / "student.safetensors", net, cfg, OSD_CLASSES, {})
    student = read_metadata(tmp_path / "student.safetensors")["student"]
    assert student["pretrained"] is None and student["sam_oil"]["sam_config"]["vision_config"]["image_size"] == 32
    image = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        wanted = net.eval()(image)
    loaded, _ = load_student(tmp_path / "student.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), wanted)
    assert wanted.shape == (2, 5, 40, 56) and wanted.isfinite().all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "sam_oil"}, "has no SAM; set train_saross.student.pretrained"),
        ({"name": "sam_oil", "sam_oil": {"order": (1, 1)}}, "expected different class ids from 1 to 4"),
        ({"name": "sam_oil", "sam_oil": {"order": (5,)}}, "expected different class ids from 1 to 4"),
        ({"name": "unet", "sam_oil": {"min_score": 0.5}}, "settings of the student sam_oil, found with unet"),
        ({"name": "sam_oil", "caft_ratio": 0.25}, "only SAROSS-Net has these settings"),
    ],
)
def test_settings_that_make_no_student_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_student(StudentConfig(**settings), 5)


def test_a_sam_that_has_learnt_nothing_is_not_trained(sam_folder, tiny_student):
    sizes = read_sam_config(sam_folder)
    cfg = StudentConfig(**tiny_student | {"pretrained": None, "sam_oil": {"sam_config": sizes}})
    net = build_student(cfg, 5)
    with pytest.raises(ValueError, match="has no SAM"):
        net.load_pretrained(cfg.pretrained)


def test_training_mode_finds_nothing(sam_folder):
    with pytest.raises(RuntimeError, match=r"call eval\(\) first, or loss_of"):
        stand_in(sam_folder).train()(torch.zeros(1, 3, 8, 8))


def claims(*boxes: tuple[int, int], width: int = 6, logit: float = 3.0) -> torch.Tensor:
    """(n, 1, width) logits: positive from the first to before the second column."""
    masks = torch.full((len(boxes), 1, width), -logit)
    for mask, (start, end) in zip(masks, boxes):
        mask[0, start:end] = logit
    return masks


def test_unclaimed_pixels_are_sea_and_the_higher_score_wins_a_shared_one():
    masks = claims((0, 3), (2, 5))
    fused = fuse_masks(masks, torch.tensor([1, 2]), torch.tensor([0.6, 0.9]), 4)
    assert fused.argmax(0).tolist() == [[1, 1, 2, 2, 2, 0]]
    fused = fuse_masks(masks, torch.tensor([1, 2]), torch.tensor([0.9, 0.6]), 4)
    assert fused.argmax(0).tolist() == [[1, 1, 1, 2, 2, 0]]


def test_an_order_of_classes_goes_before_the_scores():
    masks, classes, scores = claims((0, 4), (1, 3), (2, 6)), torch.tensor([1, 3, 2]), torch.tensor([0.9, 0.3, 0.8])
    assert fuse_masks(masks, classes, scores, 4, order=(3, 2, 1)).argmax(0).tolist() == [[1, 3, 3, 2, 2, 2]]
    # Classes that the order does not name share the last rank, where scores decide.
    assert fuse_masks(masks, classes, scores, 4, order=(2,)).argmax(0).tolist() == [[1, 1, 2, 2, 2, 2]]


def test_probabilities_follow_score_and_mask_of_the_winner():
    masks = claims((0, 2), (1, 3), logit=2.0)
    fused = fuse_masks(masks, torch.tensor([1, 1]), torch.tensor([0.5, 0.8]), 4).exp()
    torch.testing.assert_close(fused.sum(0), torch.ones(1, 6))
    inside, outside = torch.tensor(2.0).sigmoid().item(), torch.tensor(-2.0).sigmoid().item()
    for column, certainty in ((0, 0.5 * inside), (1, 0.8 * inside), (2, 0.8 * inside)):
        assert fused[1, 0, column].item() == pytest.approx(certainty + (1 - certainty) / 4, rel=1e-5)
        assert fused[0, 0, column].item() == pytest.approx((1 - certainty) / 4, rel=1e-5)
    sea = 1 - 0.8 * outside
    assert fused[0, 0, 5].item() == pytest.approx(sea + (1 - sea) / 4, rel=1e-5)


def test_the_class_map_holds_for_the_smallest_and_the_largest_scores():
    masks = claims((0, 2), (3, 5), logit=50.0)
    fused = fuse_masks(masks, torch.tensor([1, 2]), torch.tensor([1e-4, 1.0]), 8)
    assert fused.isfinite().all() and fused.argmax(0).tolist() == [[1, 1, 0, 2, 2, 0]]


def test_without_masks_all_is_sea():
    fused = fuse_masks(torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 5)
    assert fused.shape == (5, 3, 4) and fused.isfinite().all() and not fused.argmax(0).any()
