"""The training of DDPM: its noise, its budget, resuming, and what its weights tell."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from worlds import prepared, replaced, toy_config

from dakd.cli import main
from dakd.config import dump_config
from dakd.data.batch import Batch
from dakd.data.sample import IGNORE_INDEX
from dakd.data.transforms import to_teacher
from dakd.diffusion.label_bits import to_bits
from dakd.diffusion.loss import ImageObjective
from dakd.diffusion.schedule import CosineSchedule
from dakd.models.rivals.ddpm import DDPM
from dakd.runtime.runlog import read_records
from dakd.runtime.sealed import read_manifest
from dakd.runtime.tensor_files import load_state
from dakd.train.ddpm import DDPMLoss
from dakd.train.jointnet import train_jointnet
from dakd.train.teacher import stage_folder, stage_weights
from dakd.weights import load_teacher


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = prepared(tmp_path_factory.mktemp("ddpm"), generator="ddpm")
    train_jointnet(config)
    return config


@pytest.fixture
def training(trained):
    net = DDPM.from_config(trained.train_jointnet.unet, 3)
    return DDPMLoss(net, CosineSchedule(), 5, 7, torch.contiguous_format)


def batch_of(positions):
    generator = torch.Generator().manual_seed(1)
    image, label = (torch.randint(0, high, (2, 16, 16), dtype=torch.uint8, generator=generator) for high in (256, 5))
    return Batch(image[:, None], torch.tensor(positions), label)


def test_it_takes_the_steps_of_all_three_stages(trained):
    records = read_records(stage_folder(trained, "ddpm") / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[-1]["loss"] == pytest.approx((records[-1]["loss_x"] + 3 * records[-1]["loss_y"]) / 4)
    assert not (trained.run_path / "train_jointnet" / "stage1").exists()


def test_preconditioned_it_says_so_and_its_loss_is_that_of_the_clean_image_or_of_the_output(tmp_path, training):
    config = prepared(tmp_path, generator="ddpm", sigma_data=0.2, image_loss="output")
    train_jointnet(config)
    facts = load_teacher(stage_weights(config, "ddpm", "ema"))[1]
    assert facts["sigma_data"] == 0.2 and facts["image_loss"] == "output"
    batch = batch_of([3, 4])
    x_t, y_t, t = training.noised(batch, torch.float32)
    a, s = training.schedule.noising_table()[t].view(-1, 2, 1, 1, 1).unbind(1)
    w = 0.2**2 / (0.2**2 + (s / a) ** 2)
    output, seen, x_0 = training.net(x_t, y_t, t)[0], w * x_t / a, to_teacher(batch.image)
    training.objective = ImageObjective(0.2)
    wanted = (seen + (1 - w).sqrt() * output - x_0).square().mean((1, 2, 3))
    torch.testing.assert_close(training(batch)["loss_x"], wanted, rtol=1e-4, atol=1e-6)
    training.objective = ImageObjective(0.2, of_output=True)
    wanted = (output - (x_0 - seen) / (1 - w).sqrt()).square().mean((1, 2, 3))
    torch.testing.assert_close(training(batch)["loss_x"], wanted, rtol=1e-4, atol=1e-6)


def test_its_file_is_enough_to_rebuild_it(trained):
    net, facts = load_teacher(stage_weights(trained, "ddpm", "ema"))
    assert isinstance(net, DDPM) and net.label_channels == 3 and not net.training
    assert (facts["kind"], facts["b"], facts["num_classes"]) == ("ddpm", 1.0, 5) and facts["classes"]["names"]


def test_resume_is_bitwise_equal_to_the_uninterrupted_run(trained, tmp_path):
    config = prepared(tmp_path, generator="ddpm")
    train_jointnet(replaced(config, stage3={"steps": 1}))
    train_jointnet(config)
    for kind in ("raw", "ema"):
        resumed, straight = (load_state(stage_weights(c, "ddpm", kind)) for c in (config, trained))
        assert straight and all(torch.equal(resumed[name], value) for name, value in straight.items())


def test_one_stage_of_three_is_refused(trained):
    with pytest.raises(ValueError, match="trains in one stage"):
        train_jointnet(trained, (2,))


def test_training_lowers_the_loss_of_both_modalities(tmp_path):
    config = prepared(tmp_path, generator="ddpm", stage1={"steps": 20, "lr": 3e-3})
    train_jointnet(config)
    records = read_records(stage_folder(config, "ddpm") / "metrics.jsonl")
    for name in ("loss_x", "loss_y"):
        losses = [record[name] for record in records]
        assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_noise_is_that_of_the_schedule_on_every_channel_and_no_two_channels_share_it(training):
    batch = batch_of([3, 4])
    x_t, y_t, t = training.noised(batch, torch.float32)
    a, s = training.schedule.noising_table()[t].unbind(1)
    clean = torch.cat([to_teacher(batch.image), to_bits(batch.label, 5)], dim=1)
    noise = (torch.cat([x_t, y_t], dim=1) - a.view(-1, 1, 1, 1) * clean) / s.view(-1, 1, 1, 1)
    assert torch.allclose(noise.mean((2, 3)), torch.zeros(2, 4), atol=0.3)
    assert torch.allclose(noise.std((2, 3)), torch.ones(2, 4), atol=0.25)
    correlations = torch.corrcoef(noise.reshape(8, -1)) - torch.eye(8)
    assert correlations.abs().max() < 0.3


def test_noise_depends_on_the_position_and_not_on_the_batch(training):
    together, moved = training.noised(batch_of([3, 4]), torch.float32), training.noised(batch_of([4, 4]), torch.float32)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(together, moved))
    assert not torch.equal(together[0][0], moved[0][0]) and int(together[2][0]) != int(moved[2][0])


def test_unknown_pixels_are_no_part_of_the_label_loss(training):
    torch.nn.init.zeros_(training.net.unet.conv_out.weight)  # the output does not depend on the input
    batch = batch_of([3, 4])
    before = training(batch)["loss_y"]
    batch.label[0, :8] = IGNORE_INDEX
    y_hat = training.net.unet.conv_out.bias[1:].view(3, 1, 1)
    known = to_bits(batch.label, 5)[0, :, 8:]
    after = training(batch)["loss_y"]
    torch.testing.assert_close(after[0], (y_hat - known).square().mean())
    assert after[1] == before[1] and after[0] != before[0]


def test_a_grid_of_pairs_is_drawn_while_it_trains(tmp_path):
    engine = toy_config(tmp_path).model_dump(mode="json")["train_jointnet"]["engine"]
    engine |= {"sample_every": 12, "num_samples": 2, "sample_steps": 2}
    config = prepared(tmp_path, generator="ddpm", engine=engine)
    train_jointnet(config)
    with Image.open(stage_folder(config, "ddpm") / "samples" / "step-00000012.png") as grid:
        assert len(grid.convert("RGB").getcolors(1 << 16)) > 2
    assert {"samples/step-00000012.png", "config.yaml"} < read_manifest(stage_folder(config, "ddpm")).keys()


def test_an_average_of_another_length_can_be_made_of_it(tmp_path):
    optimizer = toy_config(tmp_path).model_dump(mode="json")["train_jointnet"]["optimizer"]
    config = prepared(tmp_path, generator="ddpm", optimizer=optimizer | {"posthoc_every": 2})
    train_jointnet(config)
    path, out = tmp_path / "config.yaml", tmp_path / "averaged.safetensors"
    path.write_text(dump_config(config))
    assert main(["ema", "--config", str(path), "--of", "ddpm", "--length", "0.2", "--out", str(out)]) == 0
    net, facts = load_teacher(out)
    assert isinstance(net, DDPM) and facts["ema_length"] == 0.2
