from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from dakd.models.rivals.sam_oil.masks import Adapter, SamMasks, read_sam_config


@pytest.fixture
def masks(sam_folder):
    torch.manual_seed(1)
    masks = SamMasks(read_sam_config(sam_folder), adapter_channels=4).train()
    masks.load_pretrained(sam_folder)
    return masks


BOXES = torch.tensor([[1.0, 2, 20, 12], [10, 4, 40, 20], [0, 0, 48, 24]])


def test_masks_of_a_new_adapter_are_those_of_sam_itself(sam_folder, masks):
    import torch.nn.functional as F
    from transformers import SamModel

    sam = SamModel.from_pretrained(sam_folder).eval()
    image = torch.randn(1, 3, 24, 48)
    # By hand: 48 pixels become 32, 24 become 16, and the 16 rows below are padded.
    pixels = F.pad(F.interpolate(image, (16, 32), mode="bilinear"), (0, 0, 0, 16))
    with torch.no_grad():
        small = sam(pixel_values=pixels, input_boxes=BOXES[None] * 2 / 3, multimask_output=False).pred_masks[0]
    whole = F.interpolate(small, (32, 32), mode="bilinear")[..., :16, :]
    wanted = F.interpolate(whole, (24, 48), mode="bilinear")[:, 0]
    torch.testing.assert_close(masks(masks.embed(image)[0], BOXES, (24, 48)), wanted)
    assert wanted.std() > 0.01 and (wanted[0] - wanted[1]).abs().max() > 0.01


def test_only_the_adapter_is_trained_and_sam_stays_in_evaluation(masks):
    image, before = torch.randn(2, 3, 32, 32), {k: v.clone() for k, v in masks.sam.state_dict().items()}
    trained = {name for name, parameter in masks.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("adapter.") for name in trained)
    assert masks.training and not any(module.training for module in masks.sam.modules())
    optimizer = torch.optim.Adam([p for p in masks.parameters() if p.requires_grad], lr=0.01)
    logits = masks(masks.embed(image)[0], BOXES, (32, 32))
    start = logits.square().mean().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = masks(masks.embed(image)[0], BOXES, (32, 32)).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.9 * start
    assert all(torch.equal(value, before[name]) for name, value in masks.sam.state_dict().items())


def test_many_boxes_are_masked_as_each_alone(masks):
    embedding = masks.embed(torch.randn(1, 3, 32, 32))[0]
    corners = torch.rand(37, 2) * 15
    boxes = torch.cat([corners, corners + 10], 1)
    together = masks(embedding, boxes, (32, 32))
    assert together.shape == (37, 32, 32)
    for i in (0, 15, 16, 36):
        alone = masks(embedding, boxes[i : i + 1], (32, 32))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_no_box_gives_no_mask_but_a_gradient_of_zero(masks):
    none = masks(masks.embed(torch.randn(1, 3, 32, 32))[0], BOXES[:0], (32, 32))
    assert none.shape == (0, 32, 32)
    none.sum().backward()
    gradients = [parameter.grad for parameter in masks.adapter.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_parameters_have_names_of_their_own(masks):
    # SAM shares one between two places; weights that go by parameter name would lack one of them.
    assert set(masks.state_dict()) == {name for name, _ in [*masks.named_parameters(), *masks.named_buffers()]}


def test_a_new_adapter_changes_nothing_and_learns():
    adapter, x = Adapter(8, 4), torch.randn(2, 8, 4, 4)
    assert torch.equal(adapter(x), x)
    adapter(x).square().sum().backward()
    assert adapter.expand.weight.grad.abs().max() > 0


def test_a_folder_that_is_no_sam_is_refused(sam_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no SAM at .*nowhere.*student\.pretrained.*facebook/sam-vit-base"):
        read_sam_config(tmp_path / "nowhere")
    other = tmp_path / "other"
    other.mkdir()
    bert = json.dumps({"model_type": "bert"})
    for content, message in (("{", "not JSON"), ("[]", "type list"), (bert, "type bert; expected sam")):
        (other / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_sam_config(other)


def test_weights_that_do_not_fit_are_refused(sam_folder, tmp_path, masks):
    folder = tmp_path / "damaged"
    shutil.copytree(sam_folder, folder)
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.startswith("vision_encoder.neck"))
    save_file({key: value for key, value in state.items() if key != name}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(ValueError, match="do not fit SAM: 1 missing"):
        masks.load_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"cannot be read .*copy it whole again"):
        masks.load_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights of SAM"):
        masks.load_pretrained(folder)


def test_the_sizes_hold_nothing_but_the_architecture(sam_folder):
    sizes = read_sam_config(sam_folder)
    assert set(sizes) == {"vision_config", "prompt_encoder_config", "mask_decoder_config"}
    assert sizes["vision_config"]["mlp_dim"] == 32 and "transformers_version" not in json.dumps(sizes)


def test_a_missing_transformers_is_named_with_its_remedy(sam_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RuntimeError, match=r"needs the package transformers.*pip install -e '\.\[rivals\]'"):
        read_sam_config(sam_folder)
