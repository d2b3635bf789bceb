"""The student's training: what each sample contributes, equal budgets, resuming, worlds and ZeRO stages."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from fixed_logits import FixedLogits
from torch.nn import functional as F
from worlds import toy_config, with_pairs

from dakd.config import PrepareConfig, StudentLossConfig, build_config
from dakd.data.batch import Batch
from dakd.data.prepare import prepare
from dakd.data.prepared import open_prepared, prepare_settings
from dakd.data.radiometry import Radiometry, radiometry_of
from dakd.data.simulate import PIXEL_SPACING_M, WINDOW_DB
from dakd.runtime.files import file_hash
from dakd.runtime.runlog import read_records
from dakd.runtime.sealed import read_manifest
from dakd.runtime.tensor_files import load_state
from dakd.train.batch_loss import StudentLoss
from dakd.train.checkpoint import check_identity, write_state
from dakd.train.saross import StudentTraining, student_folder, train_saross
from dakd.train.student_data import student_steps
from dakd.weights import load_student


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = with_pairs(tmp_path_factory.mktemp("student"))
    train_saross(config)
    return config


def mixed_batch():
    torch.manual_seed(0)
    return Batch(
        positions=torch.arange(2),
        image=torch.zeros(2, 1, 6, 6, dtype=torch.uint8),
        label=torch.stack([torch.randint(0, 3, (6, 6)), torch.full((6, 6), 255)]).to(torch.uint8),
        teacher=torch.randn(1, 3, 6, 6).half(),
        teacher_row=torch.tensor([-1, 0]),
    )


def test_real_samples_get_cross_entropy_and_dice_and_synthetic_ones_tau_squared_distillation():
    batch, logits = mixed_batch(), torch.randn(2, 3, 6, 6)
    tau = 3.0
    module = StudentLoss(FixedLogits(logits), StudentLossConfig(temperature=tau), 0, torch.contiguous_format)
    losses = module(batch)
    ce = F.cross_entropy(logits[:1], batch.label[:1].long())
    q = (batch.teacher.float() / tau).softmax(1)
    kd = -(q * (logits[1:] / tau).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses["ce"], torch.stack([ce, torch.zeros(())]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["loss"][1], tau**2 * kd, rtol=1e-4, atol=1e-5)
    assert losses["dice"][0].item() > 0 and losses["dice"][1].item() == 0
    torch.testing.assert_close(losses["loss"][0], ce + losses["dice"][0])


def test_distillation_gradient_is_that_of_tau_squared_kl():
    batch, logits = mixed_batch(), torch.randn(2, 3, 6, 6)
    module = StudentLoss(FixedLogits(logits), StudentLossConfig(temperature=2.0), 0, torch.contiguous_format)
    module(batch)["loss"][1].backward()
    s = logits[1:].clone().requires_grad_(True)
    q = (batch.teacher.float() / 2).softmax(1)
    (4 * F.kl_div((s / 2).log_softmax(1), q, reduction="none").sum(1).mean()).backward()
    torch.testing.assert_close(module.net.logits.grad[1:], s.grad, rtol=1e-4, atol=1e-7)


def test_both_students_get_the_same_number_of_steps_and_leave_their_files(trained):
    for training_set in ("real", "real+synthetic"):
        folder = student_folder(trained, training_set)
        records = read_records(folder / "metrics.jsonl")
        assert [record["step"] for record in records] == [1, 2, 3, 4]
        assert any(record["kd"] > 0 for record in records) == (training_set == "real+synthetic")
        net, facts = load_student(folder / "student.safetensors")
        assert facts["training_set"] == training_set and facts["weights"] == "ema"
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 64, 64)


def test_epochs_count_real_and_synthetic_samples_of_the_largest_set(trained):
    tree = trained.model_dump(mode="json")
    tree["train_saross"] |= {"steps": None, "epochs": 3}
    assert student_steps(build_config(tree), "real") == 3 * 5  # 12 real + 8 synthetic in batches of 4
    tree["train_saross"] |= {"mosaic": True}
    assert student_steps(build_config(tree), "real") == 3 * 4  # 12 real + 2 mosaics


def test_resume_is_bitwise_equal_to_the_uninterrupted_run(trained, tmp_path):
    shutil.copytree(trained.run_path, tmp_path / "run")
    config = trained.model_copy(update={"run_dir": str(tmp_path / "run")})
    folder = student_folder(config, "real+synthetic")
    # As a kill after step 2 leaves it.
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    for path in (folder / "manifest.json", *folder.glob("*.safetensors")):
        path.unlink()
    train_saross(config, ("real+synthetic",))
    assert [record["step"] for record in read_records(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    for file in ("student.safetensors", "student_raw.safetensors"):
        resumed, straight = (load_state(student_folder(c, "real+synthetic") / file) for c in (config, trained))
        assert all(torch.equal(resumed[name], value) for name, value in straight.items())


def test_a_run_whose_rate_falls_with_its_length_is_not_made_longer(trained, tmp_path):
    shutil.copytree(trained.run_path / "prepare", tmp_path / "prepare")

    def training(decay: str, steps: int) -> StudentTraining:
        tree = trained.model_dump(mode="json") | {"run_dir": str(tmp_path)}
        tree["train_saross"]["optimizer"]["lr_decay"] = decay
        tree["train_saross"]["steps"] = steps
        return StudentTraining(build_config(tree), "real")

    assert training("constant", 4).identity == training("constant", 5).identity
    begun = training("poly", 4)
    write_state(begun.checkpoints / "step-00000001", {}, {"identity": begun.identity, "step": 1})
    with pytest.raises(ValueError, match=r"optimizer\.total_steps: 4 there, 5 now"):
        check_identity(begun.checkpoints, training("poly", 5).identity)


@pytest.mark.parametrize("damage", ["flipped bit", "emptied", "killed before its manifest"])
def test_final_weights_that_are_damaged_are_written_again_from_the_last_checkpoint(trained, tmp_path, damage, capfd):
    shutil.copytree(trained.run_path, tmp_path / "run")
    config = trained.model_copy(update={"run_dir": str(tmp_path / "run")})
    folder = student_folder(config, "real")
    weights, manifest = folder / "student.safetensors", folder / "manifest.json"
    whole, listed = weights.read_bytes(), read_manifest(folder)
    if damage == "flipped bit":
        weights.write_bytes(whole[:-9] + bytes([whole[-9] ^ 64]) + whole[-8:])
    elif damage == "emptied":
        weights.write_bytes(b"")
    else:
        manifest.unlink()
    train_saross(config, ("real",))
    listed["config.yaml"] = file_hash(folder / "config.yaml")  # it names another folder of the run
    assert weights.read_bytes() == whole and read_manifest(folder) == listed
    said = capfd.readouterr().out
    assert ("written again from the last checkpoint" in said) == (damage != "killed before its manifest")
    train_saross(config, ("real",))
    assert "nothing to do" in capfd.readouterr().out


def test_finished_weights_whose_checkpoints_were_removed_are_kept(trained, tmp_path, capfd):
    shutil.copytree(trained.run_path, tmp_path / "run")
    config = trained.model_copy(update={"run_dir": str(tmp_path / "run")})
    folder = student_folder(config, "real")
    shutil.rmtree(folder / "checkpoints")
    weights = (folder / "student.safetensors").read_bytes()
    train_saross(config, ("real",))
    assert "nothing to do" in capfd.readouterr().out
    section = config.train_saross
    for key, value, message in (("global_batch", 2 * section.global_batch, "made with other settings"),
                                ("steps", section.steps + 1, "steps: set them back|total_steps")):  # fmt: skip
        other = config.model_copy(update={"train_saross": section.model_copy(update={key: value})})
        with pytest.raises(ValueError, match=message):
            train_saross(other, ("real",))
    assert (folder / "student.safetensors").read_bytes() == weights and not (folder / "checkpoints").exists()


@pytest.mark.usefixtures("cpu_with_amx")
def test_autocast_training_follows_fp32(trained, tmp_path):
    engine = trained.model_dump(mode="json")["train_saross"]["engine"] | {"precision": "autocast"}
    config = with_pairs(tmp_path, engine=engine)
    train_saross(config, ("real+synthetic",))
    ours, theirs = (
        [record["loss"] for record in read_records(student_folder(c, "real+synthetic") / "metrics.jsonl")]
        for c in (config, trained)
    )
    assert ours == pytest.approx(theirs, rel=0.05) and ours != theirs


def test_averaged_weights_come_with_averaged_batch_norm_statistics(trained):
    files = (student_folder(trained, "real") / name for name in ("student.safetensors", "student_raw.safetensors"))
    ema, raw = (load_state(file) for file in files)
    names = [name for name in ema if name.endswith("running_mean")]
    assert names and any(not torch.equal(ema[name], raw[name]) for name in names)
    assert all(torch.equal(ema[name], raw[name]) for name in ema if name.endswith("num_batches_tracked"))


def test_hard_labels_train_on_the_teachers_argmax_without_distillation(tmp_path):
    config = with_pairs(tmp_path, loss={"hard_labels": True}, steps=2)
    batch = StudentTraining(config, "synthetic").dataset.batch(list(range(8)))
    assert batch.teacher is None and batch.label[batch.is_synthetic].max() < 5
    train_saross(config, ("synthetic",))
    records = read_records(student_folder(config, "synthetic") / "metrics.jsonl")
    assert all(record["kd"] == 0 and record["ce"] > 0 for record in records)


def test_training_from_codes_follows_training_from_logits(trained, tmp_path):
    config = with_pairs(tmp_path, codec="logprob8", steps=2)
    train_saross(config, ("real+synthetic",))
    coded, exact = (
        read_records(student_folder(c, "real+synthetic") / "metrics.jsonl")[:2] for c in (config, trained)
    )
    for ours, theirs in zip(coded, exact):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01) and ours["kd"] != theirs["kd"]


@pytest.mark.parametrize(
    "loss", [{"temperature": 4.0}, {"temperature": 1.0}, {"dice_samples": "all"}], ids=["4", "1", "Dice at 1"]
)
def test_codes_are_refused_where_their_stated_error_is_too_large(tmp_path, loss):
    config = with_pairs(tmp_path, codec="logprob8", loss=loss)
    with pytest.raises(ValueError, match=r"written for the temperature 2; .* expected at most 0\.01"):
        StudentTraining(config, "real+synthetic")
    StudentTraining(config, "real")
    StudentTraining(with_pairs(tmp_path, codec="logprob8", loss=loss | {"hard_labels": True}), "real+synthetic")
    StudentTraining(with_pairs(tmp_path, codec="fp16", loss=loss), "real+synthetic")


def test_wrong_number_of_class_weights_is_refused(tmp_path):
    config = with_pairs(tmp_path, loss={"class_weights": [1.0, 2.0]})
    with pytest.raises(ValueError, match="2 values for 5 classes"):
        StudentTraining(config, "real")


def test_student_without_synthetic_pairs_names_the_step_to_run(tmp_path):
    config = toy_config(tmp_path / "run")
    prepare(config, config.run_path)
    with pytest.raises(ValueError, match="generate"):
        StudentTraining(config, "real+synthetic")


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights(tmp_path):
    config = with_pairs(tmp_path, batch_norm="frozen", steps=2)
    start = StudentTraining(config, "real").build(True).net.state_dict()
    train_saross(config, ("real",))
    trained = load_state(student_folder(config, "real") / "student_raw.safetensors")
    statistics = [name for name in start if name.endswith(("running_mean", "running_var"))]
    assert statistics and all(torch.equal(start[name], trained[name]) for name in statistics)
    weights = [name.removesuffix("running_mean") + "weight" for name in statistics if name.endswith("running_mean")]
    assert all(not torch.equal(start[name], trained[name]) for name in weights)


def test_sync_batch_norm_without_a_gpu_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match=r"batch_norm is sync.*local or frozen"):
        StudentTraining(with_pairs(tmp_path, batch_norm="sync"), "real")


def test_another_batch_norm_is_another_experiment(trained):
    tree = trained.model_dump(mode="json")
    tree["train_saross"]["batch_norm"] = "frozen"
    with pytest.raises(ValueError, match="batch_norm: 'local' there, 'frozen' now"):
        train_saross(build_config(tree), ("real",))


def test_a_students_file_states_what_its_trainings_greys_meant(trained):
    """The simulator's window and spacing, and the greys of the real training images, counted here one by one."""
    greys = np.concatenate([sample.sar.ravel() for sample in open_prepared(trained, "train")])
    medians = [np.percentile(sample.sar, 50, method="inverted_cdf") for sample in open_prepared(trained, "train")]
    for kind in ("student.safetensors", "student_raw.safetensors"):
        facts = load_student(student_folder(trained, "real+synthetic") / kind)[1]
        found = Radiometry.from_dict(facts["radiometry"], kind)
        assert found.window_db == pytest.approx(WINDOW_DB) and found.pixel_spacing_m == PIXEL_SPACING_M
        assert found.greys == tuple(np.percentile(greys, (1, 50, 99), method="inverted_cdf"))
        assert found.image_greys[1] == np.median(medians)
        assert facts["crop"] == list(trained.train_saross.crop)


def test_settings_say_what_greys_mean_and_change_no_prepared_image(trained):
    overrides = {"radiometry": {"window_db": [-25, 0], "pixel_spacing_m": 50, "quantity": "sigma0"}}
    config = trained.model_copy(update={"prepare": PrepareConfig(**(trained.prepare.model_dump() | overrides))})
    assert prepare_settings(config) == prepare_settings(trained)
    images = [np.full((4, 4), 9, np.uint8)]
    found = radiometry_of(config.prepare, images)
    assert found == Radiometry("sigma0", (-25, 0), 50, (9, 9, 9), (9, 9, 9), (9, 9))
    folder = PrepareConfig(dataset="folder", root="x", classes={"a": (0, 0, 0), "b": (1, 1, 1)})
    assert radiometry_of(folder, images).window_db is None
    with pytest.raises(ValueError, match="lower one first"):
        PrepareConfig(radiometry={"window_db": [0, -25]})
