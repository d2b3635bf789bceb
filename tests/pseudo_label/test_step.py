"""Pseudo labels are the student's logits, and their set is whole or absent."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch
from damaged_records import flip_byte
from pseudo_worlds import killed_in_the_second_shard, run_with, with_student, with_unlabelled

from dakd.cli import run_step
from dakd.config import DataConfig, dump_config
from dakd.data.records import BadRecord
from dakd.data.sample import IGNORE_INDEX, OSD_CLASSES
from dakd.data.shards import ShardSet
from dakd.data.soft_labels import range_for, to_half
from dakd.data.transforms import to_student
from dakd.pseudo_label import logits as logits_of
from dakd.pseudo_label.step import label_to_folder, pseudo_label, refuse_settings_of_another_set, set_folder
from dakd.runtime.files import file_hash
from dakd.verify import format_found, verify_run
from dakd.weights import save_student


def direct_logits(net, images: ShardSet) -> list[np.ndarray]:
    with torch.inference_mode():
        return [net(to_student(torch.as_tensor(image.sar)[None, None]))[0].numpy() for image in images]


def plain_confidence(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    return weights.max(axis=0) / weights.sum(axis=0)


def files_of(folder) -> dict[str, str]:
    return {path.name: file_hash(path) for path in folder.glob("shard-*")}


def test_pseudo_labels_are_the_students_logits_rounded_to_half_precision(tmp_path):
    config = run_with(tmp_path)
    net, images = with_student(config), ShardSet(with_unlabelled(config))
    pairs = ShardSet(pseudo_label(config))
    assert [pair.key for pair in pairs] == [image.key for image in images] == [f"image-{i}" for i in range(5)]
    for pair, image, logits in zip(pairs, images, direct_logits(net, images)):
        assert np.array_equal(pair.sar, image.sar) and pair.label is None
        assert np.array_equal(pair.soft_label, to_half(logits))
        assert np.all(np.abs(pair.soft_label - logits) <= 2**-11 * np.abs(logits) + 2**-25)
    assert pairs.index.num_soft == 5 and pairs.index.num_labelled == 0
    assert pairs.index.sizes == {"32x32": 4, "33x47": 1}


def test_images_of_one_size_share_a_pass_without_changing_place(tmp_path, monkeypatch):
    config, passes = run_with(tmp_path, {"batch_size": 2, "shard_size": 2, "max_samples": 4}), []
    net, images = with_student(config), ShardSet(with_unlabelled(config))
    real = logits_of._logits
    monkeypatch.setattr(logits_of, "_logits", lambda net, batch, device: passes.append(batch.shape) or real(
        net, batch, device))  # fmt: skip
    pairs = ShardSet(pseudo_label(config))
    assert passes == [(2, 32, 32), (1, 32, 32), (1, 33, 47)]
    assert [pair.key for pair in pairs] == [f"image-{i}" for i in range(4)] and list(pairs.counts) == [2, 2]
    for pair, logits in zip(pairs, direct_logits(net, images)):
        # Half precision, and sums in another order.
        assert np.allclose(pair.soft_label, logits, rtol=2**-10, atol=1e-4)


def skipping(config):
    return config.model_copy(update={"data": DataConfig(on_bad_record="skip")})


def test_damaged_images_stop_the_step_or_are_left_out(tmp_path, capsys):
    config = run_with(tmp_path, {"batch_size": 2})
    net, shards = with_student(config), ShardSet(with_unlabelled(config))
    images = list(shards)
    flip_byte(shards, 1)
    with pytest.raises(BadRecord, match=r"image-1.*data.on_bad_record: skip to leave the sample out of"):
        pseudo_label(config)
    assert not set_folder(config).exists()
    config = skipping(config)
    pairs = ShardSet(pseudo_label(config))
    assert "left out of pseudo_label" in (shown := capsys.readouterr().out) and "image-1" in shown
    assert [pair.key for pair in pairs] == ["image-0", "image-2", "image-3", "image-4"]
    for pair, logits in zip(pairs, direct_logits(net, [images[i] for i in (0, 2, 3, 4)])):
        assert np.allclose(pair.soft_label, logits, rtol=2**-10, atol=1e-4)
    pseudo_label(config)
    assert "is there already, made with the same settings; damaged samples left out: 1 (" in capsys.readouterr().out


def test_a_set_of_damaged_images_alone_is_refused(tmp_path):
    config = run_with(tmp_path)
    with_student(config)
    images = ShardSet(with_unlabelled(config))
    for i in range(len(images)):
        flip_byte(images, i)
    config = skipping(config)
    with pytest.raises(ValueError, match=r"none of 5 samples of .* can be read"):
        pseudo_label(config)
    assert not set_folder(config).exists()


def test_unsure_pixels_are_those_of_a_plain_computation(tmp_path):
    config = run_with(tmp_path, {"min_confidence": 0.375})
    net, images = with_student(config), ShardSet(with_unlabelled(config))
    pairs = ShardSet(pseudo_label(config))
    num_unsure = num_near = 0
    for pair, logits in zip(pairs, direct_logits(net, images)):
        confidence = plain_confidence(logits)
        is_near = np.abs(confidence - 0.375) < 1e-6
        wanted = np.where(confidence < 0.375, IGNORE_INDEX, logits.argmax(axis=0))
        assert np.array_equal(pair.label[~is_near], wanted[~is_near])
        num_unsure, num_near = num_unsure + int((pair.label == IGNORE_INDEX).sum()), num_near + int(is_near.sum())
    pixels = 4 * 32 * 32 + 33 * 47
    assert pixels / 20 < num_unsure < 19 * pixels / 20 and num_near <= 1
    assert pairs.index.ignored_pixels == num_unsure and pairs.index.num_labelled == pairs.index.num_soft == 5


def test_a_confidence_that_no_pixel_reaches_is_refused(tmp_path):
    config = run_with(tmp_path, {"min_confidence": 1.0})
    with_student(config), with_unlabelled(config)
    with pytest.raises(ValueError, match="not one pixel of 5 images reaches the confidence 1; lower pseudo_label"):
        pseudo_label(config)
    folder, aside = (config.run_path / name for name in ("pseudo_label", "pseudo_label.partial"))
    assert not folder.exists() and [path.name for path in aside.iterdir()] == [".lock"]


def test_codes_are_written_for_the_temperature_of_the_generated_pairs(tmp_path):
    config = run_with(tmp_path, {"codec": "logprob8"})
    net, images = with_student(config), ShardSet(with_unlabelled(config))
    pairs = ShardSet(pseudo_label(config))
    assert config.soft_label_temperature == 2.0 and pairs.index.soft_range == range_for(2.0, 5)
    for pair, logits in zip(pairs, direct_logits(net, images)):
        gap = np.minimum(logits.max(axis=0) - logits, pair.soft_range)
        assert np.all(np.abs(pair.soft_label * (pair.soft_range / 255) - gap) <= pair.soft_range / 510 + 1e-5)


def test_labels_that_the_images_have_change_no_byte(tmp_path):
    found = []
    for name, garbage in (("none", None), ("one", 1), ("other", 2)):
        config = run_with(tmp_path / name, {"min_confidence": 0.375})
        with_student(config), with_unlabelled(config, garbage=garbage)
        found.append(files_of(pseudo_label(config)))
    assert found[0] == found[1] == found[2] and len(found[0]) == 2


def test_a_killed_step_leaves_nothing_half_written_and_the_repeat_finishes(tmp_path):
    config, whole = (run_with(tmp_path / name, {"shard_size": 2}) for name in ("killed", "whole"))
    for one in (config, whole):
        with_student(one), with_unlabelled(one)
    process = multiprocessing.get_context("spawn").Process(target=killed_in_the_second_shard, args=(config,))
    process.start()
    process.join(120)
    folder = config.run_path / "pseudo_label"
    assert process.exitcode == -9 and not folder.exists()
    assert (folder.with_name("pseudo_label.partial") / "shard-000000.tar").is_file()
    assert pseudo_label(config) == folder and not folder.with_name("pseudo_label.partial").exists()
    assert files_of(folder) == files_of(pseudo_label(whole)) and len(ShardSet(folder)) == 5


def test_logits_that_are_not_finite_are_refused(tmp_path):
    config = run_with(tmp_path)
    net = with_student(config)
    torch.nn.init.constant_(next(net.parameters()), 1e38)  # finite, and its sums are not
    path = config.run_path / "train_saross" / "real" / "student.safetensors"
    save_student(path, net, config.train_saross.student, OSD_CLASSES, {})
    with_unlabelled(config)
    with pytest.raises(ValueError, match="image-0: check its soft label: soft label holds NaN"):
        pseudo_label(config)
    assert not (config.run_path / "pseudo_label").exists()


def test_a_finished_set_is_reused_and_another_one_refused(tmp_path, capsys):
    config = run_with(tmp_path)
    with_student(config), with_unlabelled(config)
    folder = pseudo_label(config)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert pseudo_label(run_with(tmp_path, {"batch_size": 2})) == folder
    assert "is there already, made with the same settings" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    other = run_with(tmp_path, {"min_confidence": 0.9})
    for step in (pseudo_label, refuse_settings_of_another_set):
        with pytest.raises(ValueError, match=r"other settings \(min_confidence: 0.0 then, 0.9 now\); remove it"):
            step(other)
    with_student(config, seed=1)
    with pytest.raises(ValueError, match=r"\(student: \w{12} then, \w{12} now\)"):
        refuse_settings_of_another_set(config)
    with_student(config)
    refuse_settings_of_another_set(config)


def test_the_step_says_what_it_lacks(tmp_path, capsys):
    config = run_with(tmp_path)
    with pytest.raises(ValueError, match=r"no student at .*; train it first: dakd train_saross --training-set real"):
        pseudo_label(config)
    with_student(config)
    with pytest.raises(ValueError, match=r"no images without labels in .*; put them beside .* image_only, or set"):
        pseudo_label(config)
    (config.run_path / "pseudo_label").mkdir()
    (config.run_path / "pseudo_label" / "notes.txt").write_text("mine")
    with_unlabelled(config)
    with pytest.raises(ValueError, match=r"exists without index\.json, so pseudo_label did not make it"):
        pseudo_label(config)


def test_any_student_labels_any_set_of_shards(tmp_path, capsys):
    config = run_with(tmp_path, {"min_confidence": 0.375})
    with_student(config)
    images, out = with_unlabelled(config, garbage=3), tmp_path / "pairs"
    student = config.run_path / "train_saross" / "real" / "student.safetensors"
    command = ["--student", str(student), "--images", str(images), "--out", str(out), "--min-confidence", "0.375"]
    assert run_step("pseudo_label", command) == 0, capsys.readouterr().err
    assert files_of(out) == files_of(pseudo_label(config))
    assert label_to_folder(student, images, out, min_confidence=0.375) == out
    assert run_step("pseudo_label", [*command, "--codec", "logprob8"]) == 1
    assert "codec: 'fp16' then, 'logprob8' now; " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--student", "a"], "--student needs --images DIR and --out DIR"),
        (["--student", "a", "--images", "b", "--out", "c", "seed=1"], "seed=1: settings go with --config"),
        (["--config", "demo", "--min-confidence", "0.5"], "--min-confidence goes with --student"),
        (["--student", "a", "--images", "b", "--out", "c", "--min-confidence", "2"], "expected a number from 0 to 1"),
        ([], "one of the arguments --config --student is required"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit):
        run_step("pseudo_label", arguments)
    assert message in capsys.readouterr().err


def test_verify_covers_the_set_and_names_its_repair(tmp_path, capsys):
    config = run_with(tmp_path)
    with_student(config), with_unlabelled(config)
    path = tmp_path / "toy.yaml"
    path.write_text(dump_config(config))
    assert run_step("pseudo_label", ["--config", str(path)]) == 0, capsys.readouterr().err
    folder = config.run_path / "pseudo_label"

    def states() -> dict[str, str]:
        return {one.path.name: one.state for one in verify_run(config.run_path) if folder in one.path.parents}

    assert set(states().values()) == {"ok"} and {"index.json", "manifest.json", "config.yaml"} <= states().keys()
    tar = folder / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 4
    tar.write_bytes(content)
    assert states()["shard-000000.tar"] == "damaged"
    printed = format_found(config.run_path, verify_run(config.run_path))
    assert f"rm -r {folder} && dakd pseudo_label --config {config.run_path}/config.yaml" in printed
    (folder / "manifest.json").unlink()
    assert states()["manifest.json"] == "missing"
