"""The three stages: what each starts from, trains and leaves; resuming; worlds; ZeRO stages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from worlds import prepared, replaced, toy_config, with_engine

from dakd.config import build_config
from dakd.data.batch import Batch
from dakd.data.prepare import prepare
from dakd.data.records import BadRecord
from dakd.data.sample import SOS_CLASSES, Sample
from dakd.data.shards import ShardSet, write_index, write_shard
from dakd.diffusion.loss import ImageObjective
from dakd.diffusion.precondition import fine_detail
from dakd.diffusion.schedule import CosineSchedule
from dakd.models.jointnet import SARJointNet
from dakd.models.unet import UNet
from dakd.runtime.lock import locked
from dakd.runtime.runlog import read_records
from dakd.runtime.tensor_files import load_state, read_metadata, save_weights
from dakd.train.checkpoint import list_checkpoints, verified_facts
from dakd.train.engine import Engine, NonFiniteLoss
from dakd.train.jointnet import (
    ImageLoss,
    JointLoss,
    Noising,
    StageTraining,
    freeze_for_stage,
    train_jointnet,
)
from dakd.train.teacher import resolve_sigma_data, stage_folder, stage_weights
from dakd.train.zero import fitting_micro_batch
from dakd.weights import load_teacher


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A toy teacher after all three stages; tests only read it."""
    config = prepared(tmp_path_factory.mktemp("teacher"))
    train_jointnet(config)
    return config


def test_every_stage_leaves_weights_log_and_checkpoints(trained):
    for stage in (1, 2, 3):
        records = read_records(stage_folder(trained, f"stage{stage}") / "metrics.jsonl")
        assert [record["step"] for record in records] == [1, 2, 3, 4]
        assert [record["images_seen"] for record in records] == [4, 8, 12, 16]
        assert ("loss_y" in records[0]) == (stage > 1)
        assert [path.name for path in list_checkpoints(stage_folder(trained, f"stage{stage}") / "checkpoints")] == [
            "step-00000002",
            "step-00000004",
        ]


def test_stage_2_leaves_sar_net_as_stage_1_made_it(trained):
    stage_1 = load_state(stage_weights(trained, "stage1", "ema"))
    stage_2 = load_state(stage_weights(trained, "stage2", "raw"))
    for name, value in stage_1.items():
        assert torch.equal(stage_2[f"sar_net.{name}"], value), name
    moved = [name for name, value in stage_2.items() if name.startswith("sar_bridge.") and value.any()]
    assert "sar_bridge.hear_input.weight" in moved


def test_before_its_first_step_stage_2_gives_the_image_of_stage_1_bit_for_bit(trained):
    training = StageTraining(trained, 2, ShardSet(trained.run_path / "prepare" / "train"), 0.5)
    net = training.build(True).net
    alone = UNet.from_config(trained.train_jointnet.unet, 1, 1)
    alone.load_state_dict(load_state(stage_weights(trained, "stage1", "ema")))
    x, y, t = torch.randn(2, 1, 16, 16), torch.randn(2, 5, 16, 16), torch.tensor([5, 700])
    assert torch.equal(net(x, y, t)[0], alone(x, t))


def test_stage_3_moves_every_part(trained):
    before, after = (load_state(stage_weights(trained, stage, "ema")) for stage in ("stage2", "stage3"))
    for part in ("sar_net.", "label_net.", "sar_bridge.", "label_bridge."):
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part))


def test_averaged_weights_differ_from_raw_ones_and_lie_near_them(trained):
    raw, ema = load_state(stage_weights(trained, "stage3", "raw")), load_state(stage_weights(trained, "stage3", "ema"))
    name = "sar_net.conv_out.weight"
    assert not torch.equal(raw[name], ema[name])
    torch.testing.assert_close(raw[name], ema[name], rtol=0, atol=0.02)


def test_a_teachers_file_is_enough_to_rebuild_it(trained):
    net, facts = load_teacher(stage_weights(trained, "stage3", "ema"))
    index = ShardSet(trained.run_path / "prepare" / "train").index
    assert facts["b"] == pytest.approx(index.balancing_factor)
    assert facts["classes"]["names"][1] == "oil" and facts["schedule"]["num_train_timesteps"] == 1000
    assert isinstance(net, SARJointNet) and not net.training


def test_a_finished_stage_is_left_as_it_is(trained, capfd):
    before = stage_weights(trained, "stage1", "ema").stat().st_mtime_ns
    train_jointnet(trained, (1,))
    assert stage_weights(trained, "stage1", "ema").stat().st_mtime_ns == before
    assert "nothing to do" in capfd.readouterr().out


def test_resume_is_bitwise_equal_to_the_uninterrupted_run(trained, tmp_path):
    config = prepared(tmp_path)
    for stage in (1, 2):
        short = {f"stage{stage}": {"steps": 2, "lr": 1e-3}}
        train_jointnet(replaced(config, **short), (stage,))
        train_jointnet(config, (stage,))
        for kind in ("raw", "ema"):
            resumed, straight = (load_state(stage_weights(c, f"stage{stage}", kind)) for c in (config, trained))
            assert all(torch.equal(resumed[name], value) for name, value in straight.items())
        steps = [record["step"] for record in read_records(stage_folder(config, f"stage{stage}") / "metrics.jsonl")]
        assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("first, then, tolerance", [(1, 2, 0), (2, 1, 0), (1, 3, 2e-4), (3, 1, 2e-4)])
def test_a_run_goes_on_under_another_zero_stage(tmp_path, first, then, tolerance):
    """Bitwise between stages 1 and 2. Stage 3 adds gradients up in another order, resumed or not: equal to rounding."""
    straight, resumed = (prepared(tmp_path / name) for name in ("straight", "resumed"))
    train_jointnet(with_engine(straight, f"zero{first}"), (1,))
    train_jointnet(with_engine(resumed, f"zero{first}", stage1={"steps": 2, "lr": 1e-3}), (1,))
    train_jointnet(with_engine(resumed, f"zero{then}"), (1,))
    for kind in ("raw", "ema"):
        ours, theirs = (load_state(stage_weights(config, "stage1", kind)) for config in (resumed, straight))
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("cpu_with_amx")
def test_bf16_training_follows_fp32_and_keeps_fp32_masters(trained, tmp_path):
    config = prepared(tmp_path)
    engine = config.model_dump(mode="json")["train_jointnet"]["engine"] | {"precision": "bf16"}
    train_jointnet(replaced(config, engine=engine), (1, 2))
    for stage in (1, 2):
        ours, theirs = (
            [record["loss"] for record in read_records(stage_folder(c, f"stage{stage}") / "metrics.jsonl")]
            for c in (config, trained)
        )
        assert ours == pytest.approx(theirs, rel=0.03)
    weights = load_state(stage_weights(config, "stage2", "ema"))
    value = weights["label_net.mid_block1.conv1.weight"]
    assert value.dtype == torch.float32 and not torch.equal(value, value.bfloat16().float())
    frozen = load_state(stage_weights(config, "stage1", "ema"))["conv_in.weight"]
    assert torch.equal(weights["sar_net.conv_in.weight"], frozen)


def checkpoint_precisions(config) -> set[str]:
    paths = list_checkpoints(stage_folder(config, "stage1") / "checkpoints")
    return {verified_facts(path)["precision"] for path in paths}


def test_a_training_goes_on_in_the_precision_that_it_began_in(tmp_path, monkeypatch, capfd):
    """auto takes bf16 for the wide net where there is AMX. A host of another kind joins later, both ways."""
    wide = {"unet": {"channels": [8, 64], "blocks_per_level": 1, "attention_levels": [1], "norm_groups": 4}}
    short, whole = {"stage1": {"steps": 2, "lr": 1e-3}}, {"stage1": {"steps": 4, "lr": 1e-3}}
    runs = (("", "AMX", "fp32", "fp32"), ("AMX", "AMX", "bf16", "bf16"), ("AMX", "", "bf16", "fp32"))
    for first, then, began, ends in runs:
        config = prepared(tmp_path / f"{first}-{then}", **wide, **short)
        monkeypatch.setattr("dakd.runtime.precision.cpu_bf16", lambda first=first: first)
        train_jointnet(config, (1,))
        assert checkpoint_precisions(config) == {began}
        monkeypatch.setattr("dakd.runtime.precision.cpu_bf16", lambda then=then: then)
        train_jointnet(replaced(config, **whole), (1,))
        assert checkpoint_precisions(config) == {began, ends}
    said = capfd.readouterr().out
    assert "stage1: precision: bf16 (this CPU has AMX; fp32 by train_jointnet.engine.precision=fp32)" in said
    assert "stage1: precision: fp32 (as it was begun; another by train_jointnet.engine.precision)" in said
    assert "stage1: precision: fp32 (begun in bf16, which this CPU would emulate)" in said


@pytest.mark.usefixtures("cpu_without_bf16")
def test_a_training_in_bf16_is_refused_where_the_cpu_would_emulate_it(tmp_path):
    config = prepared(tmp_path)
    engine = config.model_dump(mode="json")["train_jointnet"]["engine"] | {"precision": "bf16"}
    with pytest.raises(ValueError, match=r"train_jointnet.engine.precision is bf16, .*; set .* to fp32 or auto"):
        train_jointnet(replaced(config, engine=engine), (1,))
    assert not list_checkpoints(stage_folder(config, "stage1") / "checkpoints")


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_with_amx")
def test_the_final_loss_in_bf16_differs_from_fp32_by_a_tenth_of_the_spread_of_seeds_at_most(tmp_path):
    """Stage 1, 40 steps, a mean of the last 10. Found: 0.06486, 0.06987 and 0.07450 in fp32, 0.06483 in bf16."""
    finals = {}
    for precision, seed in (("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 0)):
        config = toy_config(tmp_path / f"{precision}{seed}", stage1={"steps": 40, "lr": 1e-3})
        tree = config.model_dump(mode="json") | {"seed": seed}
        tree["prepare"]["simulation"]["seed"] = 3  # the same images for all
        tree["train_jointnet"]["engine"]["precision"] = precision
        config = build_config(tree)
        prepare(config, config.run_path)
        train_jointnet(config, (1,))
        losses = [record["loss"] for record in read_records(stage_folder(config, "stage1") / "metrics.jsonl")]
        finals[precision, seed] = np.mean(losses[-10:])
    fp32 = [value for (precision, _), value in finals.items() if precision == "fp32"]
    assert 0 < abs(finals["bf16", 0] - finals["fp32", 0]) <= 0.1 * (max(fp32) - min(fp32))


@pytest.mark.slow
def test_compiled_training_follows_eager(trained, tmp_path):
    config = prepared(tmp_path)
    engine = config.model_dump(mode="json")["train_jointnet"]["engine"] | {"compile": True}
    train_jointnet(replaced(config, engine=engine), (1,))
    ours, theirs = (load_state(stage_weights(c, "stage1", "raw")) for c in (config, trained))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-4)


def test_another_experiments_checkpoint_is_not_continued(trained):
    with pytest.raises(ValueError, match="flip: False there, True now"):
        train_jointnet(replaced(trained, flip=True), (1,))


def test_stage_without_its_predecessor_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run --stage 1 first"):
        train_jointnet(prepared(tmp_path), (2,))


@pytest.mark.parametrize(
    "batch, largest, world, wanted", [(32, 16, 2, 16), (32, 16, 4, 8), (16, 16, 1, 16), (12, 5, 1, 4)]
)
def test_micro_batch_is_the_largest_that_fits(batch, largest, world, wanted):
    assert fitting_micro_batch(batch, largest, world) == wanted


def test_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"global_batch \(16\) is not a multiple of the 3 processes; set it to 15"):
        fitting_micro_batch(16, 16, 3)


def test_size_of_the_micro_batch_does_not_change_the_run(trained, tmp_path):
    config = prepared(tmp_path, micro_batch=4)
    train_jointnet(config, (1,))
    ours, theirs = (load_state(stage_weights(c, "stage1", "ema")) for c in (config, trained))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-4)
    # Adam hides a gradient of another scale; its norm, which is clipped, does not.
    norms = [read_records(stage_folder(c, "stage1") / "metrics.jsonl")[0]["grad"] for c in (config, trained)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("stages", [(1,), (1, 2)])
def test_stage_that_another_started_from_is_not_trained_on(tmp_path, stages):
    config = prepared(tmp_path)
    train_jointnet(config, (1, 2))
    before = stage_weights(config, "stage1", "ema").read_bytes()
    with pytest.raises(ValueError, match=r"stage1 would be trained on to step 6, but .*stage2 has started from it"):
        train_jointnet(replaced(config, stage1={"steps": 6, "lr": 1e-3}), stages)
    assert stage_weights(config, "stage1", "ema").read_bytes() == before
    train_jointnet(config, (1, 2))


def test_stage_whose_start_has_changed_is_not_continued(tmp_path):
    config = prepared(tmp_path)
    train_jointnet(config, (1, 2))
    with pytest.raises(ValueError, match="started from other weights"):
        train_jointnet(replaced(config, init_from="raw", stage2={"steps": 6, "lr": 1e-3}), (2,))


def test_shards_prepared_with_other_settings_are_refused(tmp_path):
    tree = prepared(tmp_path).model_dump(mode="json")
    tree["prepare"]["simulation"]["looks"] = 3.0
    with pytest.raises(ValueError, match="was prepared with other settings"):
        train_jointnet(build_config(tree), (1,))


def test_configuration_of_a_refused_run_is_not_kept(trained):
    path = trained.run_path / "config.yaml"
    before = path.read_text()
    with pytest.raises(ValueError, match="made with other settings"):
        train_jointnet(replaced(trained, flip=True), (1,))
    assert path.read_text() == before
    assert (stage_folder(trained, "stage1") / "config.yaml").exists()


def test_folder_that_another_process_writes_is_left_alone(tmp_path):
    config = prepared(tmp_path)
    folder = stage_folder(config, "stage1")
    with locked(folder), pytest.raises(RuntimeError, match=r"is being written by process \d+ on"):
        train_jointnet(config, (1,))
    train_jointnet(config, (1,))
    assert stage_weights(config, "stage1", "ema").exists()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_optimizer_may_be_offloaded(trained, tmp_path, stage):
    config = prepared(tmp_path)
    engine = config.model_dump(mode="json")["train_jointnet"]["engine"]
    engine |= {"deepspeed": f"configs/deepspeed/zero{stage}_offload.json"}
    train_jointnet(replaced(config, engine=engine), (1,))
    ours, theirs = (load_state(stage_weights(c, "stage1", "ema")) for c in (config, trained))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_engine_starts_from_unrounded_weights(tmp_path, stage):
    config = prepared(tmp_path)
    training = StageTraining(config, 1, ShardSet(config.run_path / "prepare" / "train"), 0.5)
    module = training.build(True)
    start = {name: value.clone() for name, value in module.named_parameters()}
    settings = training.section.engine.model_copy(update={"deepspeed": f"configs/deepspeed/zero{stage}.json"})
    engine = Engine(
        module,
        training.section.optimizer,
        settings,
        global_batch=4,
        micro_batch=2,
        precision="bf16",
        decays_vectors=True,
    )
    masters = engine.collect("master")
    assert all(torch.equal(masters[name], value) for name, value in start.items())
    engine.close()


def test_stage_1_trains_on_images_without_any_mask(tmp_path):
    config = prepared(tmp_path)
    train = ShardSet(config.run_path / "prepare" / "train")
    bare = [Sample(sample.key, sample.sar) for sample in map(train.read, range(len(train)))]
    folder, others = tmp_path / "images", tmp_path / "others"  # of another dataset, with classes of its own
    for place, classes in ((folder, train.classes), (others, SOS_CLASSES)):
        write_shard(place, 0, bare, classes)
        write_index(place, classes, kind="real")
    extra = replaced(config, stage1={"steps": 2, "lr": 1e-3, "extra_images": [str(folder), str(others)]})
    assert StageTraining(extra, 1, train, 0.5).dataset.epoch_length == 36
    only_images = ShardSet(folder)
    training = StageTraining(config, 1, only_images, 0.5)
    batch = training.dataset.batch([0])
    assert batch.label is None and batch.image.shape == (1, 1, 16, 16)
    train_jointnet(extra, (1,))
    assert stage_weights(extra, "stage1", "ema").exists()
    with pytest.raises(ValueError, match="labels for 0 of 12"):
        StageTraining(config, 2, only_images, 0.5)


def test_balancing_factor_scales_the_noisy_mask_and_nothing_else():
    image = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    label = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    positions = torch.arange(2)
    noisings = [Noising(CosineSchedule(), b, 3, seed=1) for b in (0.25, 1.0)]
    small, large = (noising(image, label, positions, torch.float32) for noising in noisings)
    assert torch.equal(small[0], large[0]) and torch.equal(small[2], large[2])
    a = CosineSchedule().noising_table()[small[2], 0].view(-1, 1, 1, 1)
    y_0 = 2 * torch.nn.functional.one_hot(label.long(), 3).permute(0, 3, 1, 2).float() - 1
    torch.testing.assert_close(large[1] - small[1], 0.75 * a * y_0, rtol=1e-5, atol=1e-5)


def test_frozen_sar_net_costs_no_weight_gradients(trained):
    """Multiply-adds of backward passes, counted: stage 2 computes none for SAR-Net's weights."""
    from torch.utils.flop_counter import FlopCounterMode

    def backward_flops(stage):
        net = SARJointNet.from_config(trained.train_jointnet.unet, 3)
        freeze_for_stage(net, stage)
        module = JointLoss(net, Noising(CosineSchedule(), 0.5, 3, seed=0), 1.0, torch.contiguous_format)
        batch = Batch(
            image=torch.zeros(1, 1, 16, 16, dtype=torch.uint8),
            positions=torch.zeros(1, dtype=torch.int64),
            label=torch.zeros(1, 16, 16, dtype=torch.uint8),
        )
        loss = module(batch)["loss"].sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        return counter.get_total_flops()

    assert backward_flops(2) < 0.85 * backward_flops(3)


def test_non_finite_loss_stops_before_the_optimizer_and_names_the_batch(tmp_path, monkeypatch):
    config = prepared(tmp_path)
    train_jointnet(replaced(config, stage1={"steps": 2, "lr": 1e-3}), (1,))
    import dakd.diffusion.loss as module

    monkeypatch.setattr(module, "image_loss", lambda x_0, x_hat: x_hat.mean(dim=(1, 2, 3)) * float("nan"))
    with pytest.raises(NonFiniteLoss, match=r"the loss is nan.*batch: \w+"):
        train_jointnet(config, (1,))
    assert [path.name for path in list_checkpoints(stage_folder(config, "stage1") / "checkpoints")] == ["step-00000002"]


def test_sample_grid_shows_images_in_stage_1_and_pairs_later(trained, tmp_path):
    from PIL import Image

    train = ShardSet(trained.run_path / "prepare" / "train")
    for stage in (1, 2):
        weights = load_state(stage_weights(trained, f"stage{stage}", "ema"))
        StageTraining(trained, stage, train, 0.5).draw_pairs(weights, tmp_path / f"{stage}.png")
    alone, pairs = (Image.open(tmp_path / f"{stage}.png") for stage in (1, 2))
    assert pairs.width > 1.7 * alone.width


@pytest.mark.slow
def test_one_step_of_the_paper_size_net_runs_on_the_cpu(tmp_path):
    paper = {"unet": {}, "crop": [64, 64], "global_batch": 1, "micro_batch": 1, "stage3": {"steps": 1, "lr": 1e-5}}
    config = prepared(tmp_path, **paper)
    net = SARJointNet.from_config(config.train_jointnet.unet, 5)
    from dakd.runtime.tensor_files import save_weights

    start = net.label_net.conv_in.weight.detach().clone()
    save_weights(stage_weights(config, "stage2", "ema"), net.state_dict(), {})
    del net
    train_jointnet(config, (3,))
    record = read_records(stage_folder(config, "stage3") / "metrics.jsonl")[-1]
    assert record["step"] == 1 and 0 < record["loss"] < 50 and 0 < record["grad"] < float("inf")
    moved = load_state(stage_weights(config, "stage3", "raw"))["label_net.conv_in.weight"] - start
    assert 0 < moved.abs().max() < 1e-4  # Adam's first step is at most about the learning rate, here 1e-5 / 2


def test_a_label_branch_trained_with_l2_says_so_in_its_weights_from_stage_2_on(trained, tmp_path):
    config = prepared(tmp_path, label_loss="l2")
    train_jointnet(config)
    _, facts = load_teacher(stage_weights(config, "stage3", "ema"))
    assert facts["label_loss"] == "l2"
    ours, theirs = (load_state(stage_weights(c, "stage1", "ema")) for c in (config, trained))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert "label_loss" not in read_metadata(stage_weights(config, "stage1", "ema"))
    assert all(read_metadata(stage_weights(trained, f"stage{n}", "ema"))["label_loss"] == "ce" for n in (2, 3))
    with pytest.raises(ValueError, match="label_loss"):
        train_jointnet(replaced(config, label_loss="ce"), (3,))


def test_a_preconditioned_teacher_says_so_in_its_weights_and_stays_what_it_is(trained, tmp_path):
    config = prepared(tmp_path, sigma_data=0.2)
    train_jointnet(config)
    for stage in (1, 2, 3):
        assert read_metadata(stage_weights(config, f"stage{stage}", "ema"))["sigma_data"] == 0.2
        assert read_metadata(stage_weights(trained, f"stage{stage}", "ema"))["sigma_data"] is None
    ours, theirs = (load_state(stage_weights(c, "stage1", "ema")) for c in (config, trained))
    assert any(not torch.equal(ours[name], value) for name, value in theirs.items())
    with pytest.raises(ValueError, match=r"stage2.*was trained with sigma_data 0\.2, and stage 3 .* with None; set"):
        train_jointnet(replaced(config, sigma_data=None), (3,))
    with pytest.raises(ValueError, match="sigma_data"):
        train_jointnet(replaced(config, sigma_data=0.3), (1,))


def test_a_teacher_trained_by_the_loss_of_its_output_says_so_and_stays_what_it_is(trained, tmp_path):
    config = prepared(tmp_path, sigma_data=0.2, image_loss="output")
    train_jointnet(config)
    for stage in (1, 2, 3):
        assert read_metadata(stage_weights(config, f"stage{stage}", "ema"))["image_loss"] == "output"
        assert read_metadata(stage_weights(trained, f"stage{stage}", "ema"))["image_loss"] is None
    with pytest.raises(ValueError, match="image_loss: 'output' there, None now"):
        train_jointnet(replaced(config, image_loss="clean"), (3,))


def test_sigma_data_may_be_left_to_the_training_images(tmp_path, capfd):
    config = prepared(tmp_path, sigma_data="auto", stage1={"steps": 1})
    train_jointnet(config, (1,))
    shards = ShardSet(config.run_path / "prepare" / "train")
    wanted = fine_detail(shards.read(i).sar for i in range(len(shards)))
    found = read_metadata(stage_weights(config, "stage1", "ema"))["sigma_data"]
    assert found == pytest.approx(wanted, abs=1e-4) and 0.05 < found < 0.3
    assert f"sigma_data {found} (auto" in capfd.readouterr().out
    folder = config.run_path / "flat"
    write_shard(folder, 0, [Sample("a", np.full((16, 16), 7, np.uint8))], shards.classes)
    write_index(folder, shards.classes, kind="real", provenance={})
    with pytest.raises(ValueError, match=r"the 1 training images have no fine detail; set train_jointnet\.sigma_data"):
        resolve_sigma_data("auto", ShardSet(folder))


def test_a_damaged_image_stops_auto_or_is_left_out_as_the_configuration_says(tmp_path):
    config = prepared(tmp_path)
    folder = config.run_path / "prepare" / "train"
    whole = resolve_sigma_data("auto", ShardSet(folder))
    tar = folder / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[600:640] = bytes(40)  # within the first record
    tar.write_bytes(data)
    with pytest.raises(BadRecord):
        resolve_sigma_data("auto", ShardSet(folder))
    assert resolve_sigma_data("auto", ShardSet(folder), "skip") == pytest.approx(whole, rel=0.2)


def test_a_file_with_an_impossible_sigma_data_is_refused(trained, tmp_path):
    net, facts = load_teacher(stage_weights(trained, "stage3", "ema"))
    for wrong in (-1.0, 0, 9):
        save_weights(tmp_path / "teacher.safetensors", net.state_dict(), facts | {"sigma_data": wrong})
        with pytest.raises(ValueError, match=rf"teacher\.safetensors.*sigma_data is {wrong}; expected"):
            load_teacher(tmp_path / "teacher.safetensors")


@pytest.mark.parametrize("of_output", [False, True])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_preconditioned_loss_is_that_of_the_clean_image_or_of_the_output(trained, stage, of_output):
    noising, objective = Noising(CosineSchedule(), 0.4, 5, 3), ImageObjective(0.2, of_output)
    unet = trained.train_jointnet.unet
    net = UNet.from_config(unet, 1, 1) if stage == 1 else SARJointNet.from_config(unet, 5)
    torch.nn.init.normal_((net if stage == 1 else net.sar_net).conv_out.weight, std=0.3)
    layout = torch.contiguous_format
    training = (
        ImageLoss(net, noising, layout, objective)
        if stage == 1
        else JointLoss(net, noising, 1.0, layout, objective=objective)
    )
    shards = ShardSet(trained.run_path / "prepare" / "train")
    samples = [shards.read(i) for i in range(3)]
    batch = Batch(
        image=torch.stack([torch.from_numpy(sample.sar[None, :16, :16].copy()) for sample in samples]),
        positions=torch.arange(3),
        label=torch.stack([torch.from_numpy(sample.label[:16, :16].copy()) for sample in samples]),
    )
    x_t, y_t, t = noising(batch.image, batch.label, batch.positions, torch.float32)
    output = net(x_t, t) if stage == 1 else net(x_t, y_t, t)[0]
    a, s = noising.schedule.noising_table()[t].view(-1, 2, 1, 1, 1).unbind(1)
    w = 0.2**2 / (0.2**2 + (s / a) ** 2)
    x_0, seen = batch.image / 127.5 - 1, w * x_t / a
    if of_output:
        wanted = (output - (x_0 - seen) / (1 - w).sqrt()).square().mean((1, 2, 3))
    else:
        wanted = (seen + (1 - w).sqrt() * output - x_0).square().mean((1, 2, 3))
    torch.testing.assert_close(training(batch)["loss_x"], wanted, rtol=1e-4, atol=1e-6)


def test_l2_training_of_the_label_branch_lowers_its_loss(tmp_path):
    config = prepared(tmp_path, label_loss="l2", stage1={"steps": 2}, stage2={"steps": 24, "lr": 3e-3})
    train_jointnet(config, (1, 2))
    losses = [record["loss_y"] for record in read_records(stage_folder(config, "stage2") / "metrics.jsonl")]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
