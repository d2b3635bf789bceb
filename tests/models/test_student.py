"""What all students share: methods that must be there, and several scales of an image, fused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fixed_logits import BareStudent, FixedLogits
from torch import nn

from dakd.models.student import MultiScale, StudentNet, at_scales


def test_the_largest_score_of_all_scales_is_taken_at_each_pixel_and_class():
    # The identity returns its input: at half the size, the mean of each 2 x 2 block, here 6 and -2.5.
    image = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]], [[-1.0, -2.0], [-3.0, -4.0]]]])
    fused = at_scales(nn.Identity(), (0.5, 1.0))(image)
    assert fused.tolist() == [[[[6.0, 6.0], [8.0, 12.0]], [[-1.0, -2.0], [-2.5, -2.5]]]]


def test_each_scale_is_seen_at_its_size_and_brought_to_the_images():
    sizes = []

    class Net(nn.Module):
        def forward(self, image):
            sizes.append(tuple(image.shape[-2:]))
            return image * len(sizes)

    image = torch.rand(1, 3, 9, 30) + 1
    fused = MultiScale(Net(), (0.5, 0.75, 1, 2))(image)
    assert sizes == [(4, 15), (7, 22), (9, 30), (18, 60)]
    largest = F.interpolate(F.interpolate(image, size=(18, 60), mode="bilinear"), size=(9, 30), mode="bilinear") * 4
    torch.testing.assert_close(fused, largest)


def test_one_scale_is_the_model_itself_and_none_is_refused():
    net = nn.Identity()
    assert at_scales(net, (1.0,)) is net
    for scales in ((), (0.5, 0.0), 0.5, "1", (1.0, "a"), (float("nan"),), (float("inf"),), None):
        with pytest.raises(ValueError, match="expected one or more positive numbers"):
            at_scales(net, scales)


def test_an_image_of_whole_numbers_is_refused():
    net = BareStudent(2, 1)
    with pytest.raises(ValueError, match=r"image is torch\.uint8; expected floating point, normalised"):
        net(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("missing", ["from_config", "encode", "segment"])
def test_a_student_that_lacks_a_method_fails_when_it_is_made(missing):
    methods = {name: getattr(BareStudent, name) for name in ("from_config", "encode", "segment") if name != missing}
    with pytest.raises(TypeError, match=missing):
        type("Unfinished", (StudentNet,), methods)(num_classes=2, multiple=1)


def test_a_net_without_a_loss_of_its_own_says_what_trains_it():
    with pytest.raises(TypeError, match=r"train_saross\.loss trains it"):
        FixedLogits(torch.zeros(1, 2, 4, 4)).loss_of(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4))
