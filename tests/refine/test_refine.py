"""Refined pairs: which pixels are ignored, how often a pair is written, and that a set is whole or absent."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from damaged_records import flip_byte
from tiny_students import TINY_MAMBA_STUDENT
from worlds import with_pairs

from dakd.cli import run_step
from dakd.config import DataConfig, RefineConfig, StudentConfig, build_config, dump_config
from dakd.data.records import BadRecord
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES, Sample
from dakd.data.shards import ShardSet, verify, write_shards
from dakd.data.transforms import to_student
from dakd.models.registry import build_student
from dakd.refine import refine as refining
from dakd.refine.losses import Hardness, gated
from dakd.refine.refine import refine, refine_pairs, refuse_other_refinement
from dakd.runtime.sealed import read_json, read_manifest, remove_manifest
from dakd.runtime.tensor_files import load_state, read_metadata, save_weights, weights_hash
from dakd.train.saross import StudentTraining
from dakd.train.student_data import student_dataset
from dakd.verify import verify_run
from dakd.weights import load_student, save_student


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(refining, "device_of", lambda _: torch.device("cpu"))


def write_student(path, seed=0, classes=OSD_CLASSES):
    settings = StudentConfig(**TINY_MAMBA_STUDENT)
    torch.manual_seed(seed)
    net = build_student(settings, classes.num_classes)
    with torch.no_grad():
        for name, parameter in net.named_parameters():  # speaking logits: losses that differ from pixel to pixel
            if parameter.ndim > 1 and "encoder" not in name:
                parameter.mul_(4)
    save_student(path, net, settings, classes, {})
    return path


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return write_student(tmp_path_factory.mktemp("student") / "student.safetensors")


def make_pairs(folder, count=7, labels=False, codec="fp16", shard_size=3):
    """Pairs of 32 x 32 with 5 classes, of which the last one never leads."""
    rng, samples = np.random.default_rng(1), []
    for i in range(count):
        soft = rng.normal(0, 2, (5, 32, 32)).astype(np.float16)
        soft[4] = -9
        label = np.where(rng.random((32, 32)) < 0.2, 255, rng.integers(0, 4, (32, 32))).astype(np.uint8)
        sar = rng.integers(0, 30 * i + 20, (32, 32)).astype(np.uint8)
        samples.append(Sample(f"p{i}", sar, label if labels else None, soft, meta={"number": i}))
    write_shards(folder, samples, OSD_CLASSES, shard_size=shard_size, codec=codec, temperature=2.0)
    return folder


def plain_losses(student, pairs):
    """For each pair its hard label and its losses, in numpy and float64; logits alone come from the net."""
    net, _ = load_student(student)
    found = []
    for pair in pairs:
        with torch.inference_mode():
            s = net(to_student(torch.tensor(pair.sar)[None, None]))[0].numpy().astype(np.float64)
        z = pair.soft_label.astype(np.float64)
        z = -z if pair.soft_label.dtype == np.uint8 else z
        label = z.argmax(0) if pair.label is None else pair.label.astype(np.int64)
        losses = np.log(np.exp(s).sum(0)) - np.take_along_axis(s, np.minimum(label, 4)[None], 0)[0]
        found.append((label, losses))
    return found


def plain_gate(found, factor):
    """Pixel by pixel."""
    sums, counts = [0.0] * 5, [0] * 5
    for label, losses in found:
        for y, loss in zip(label.ravel().tolist(), losses.ravel().tolist()):
            if y != 255:
                sums[y] += loss
                counts[y] += 1
    means = [total / max(1, count) for total, count in zip(sums, counts)]
    labels = []
    for label, losses in found:
        out = label.copy()
        for place in np.ndindex(label.shape):
            if label[place] != 255 and losses[place] > factor * means[label[place]]:
                out[place] = 255
        labels.append(out)
    return labels, means, counts


# --- the pixel gate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["fp16", "logprob8"])
@pytest.mark.parametrize("labels", [False, True])
def test_ignored_pixels_are_those_whose_loss_exceeds_the_factor_times_the_mean_of_their_class(
    tmp_path, student, labels, codec, capfd
):
    pairs = ShardSet(make_pairs(tmp_path / "pairs", labels=labels, codec=codec))
    out = refine_pairs(student, pairs.folder, tmp_path / "out", RefineConfig(pixel_gate=1.25))
    found, made = plain_losses(student, pairs), ShardSet(out)
    wanted, means, counts = plain_gate(found, 1.25)
    assert [one.key for one in made] == [one.key for one in pairs] and len(verify(out)) == 0
    table = read_json(out / "refine.json")["classes"]
    for number, name in enumerate(OSD_CLASSES.names):
        before = sum(int((label == number).sum()) for label, _ in found)
        after = sum(int((label == number).sum()) for label in wanted)
        assert table[name]["mean_loss"] == pytest.approx(means[number], rel=1e-6)
        assert (table[name]["pixels"], table[name]["ignored_pixels"]) == (counts[number], before - after)
    for one, source, label in zip(made, pairs, wanted):
        assert np.array_equal(one.label, label)
        assert np.array_equal(one.sar, source.sar) and np.array_equal(one.soft_label, source.soft_label)
        assert one.meta == source.meta and one.soft_range == source.soft_range
    assert 0.05 < sum(int((label == 255).sum()) for label in wanted) / (7 * 1024) - 0.2 * labels < 0.6
    assert table["land"] == {"pixels": 0, "mean_loss": 0.0, "ignored_pixels": 0}
    assert "ignored: above 1.25 x mean loss" in capfd.readouterr().out


def test_the_gate_is_strict_and_leaves_ignored_pixels_and_large_factors_alone():
    label = np.array([[0, 0, 1, 255]], np.uint8)
    losses = np.array([[2.0, 2.1, 2.1, 0.0]])
    assert gated(label, losses, np.array([1.0, 2.0]), 2.0).tolist() == [[0, 255, 1, 255]]
    assert gated(label, losses, np.array([1.0, 2.0]), 1e9).tolist() == label.tolist()


# --- repeats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_the_pair_of_rank_r_of_n_is_written_as_often_as_its_share_of_the_repeats(tmp_path, student, repeats):
    pairs = ShardSet(make_pairs(tmp_path / "pairs"))
    out = refine_pairs(student, pairs.folder, tmp_path / "out", RefineConfig(repeats=repeats))
    means = [losses.mean() for _, losses in plain_losses(student, pairs)]
    order = sorted(range(7), key=means.__getitem__)
    assert len({round(mean, 6) for mean in means}) == 7
    wanted = {f"p{i}": math.ceil(repeats * (order.index(i) + 1) / 7) for i in range(7)}
    assert set(wanted.values()) >= {1, repeats}
    made = ShardSet(out)
    keys = [one.key for one in made]
    assert keys == [key if n == 1 else f"{key}-copy{n}" for key in wanted for n in range(1, wanted[key] + 1)]
    assert made.index.num_labelled == 0 and made.index.num_soft == len(keys)
    assert len(keys) == RefineConfig(repeats=repeats).num_written(7)
    sources = {one.key: one for one in pairs}
    for one in made:
        source = sources[one.key.split("-")[0]]
        assert np.array_equal(one.sar, source.sar) and np.array_equal(one.soft_label, source.soft_label)
    table = read_json(out / "refine.json")
    assert table["num_written"] == len(keys)
    assert table["pairs_by_copies"] == {str(n): list(wanted.values()).count(n) for n in sorted({*wanted.values()})}


def test_ranks_go_by_the_mean_loss_and_equal_pairs_keep_their_order():
    hardness = Hardness(np.zeros(2), np.zeros(2), np.array([0.5, 0.1, 0.5, 0.3]))
    assert hardness.ranks.tolist() == [3, 1, 4, 2]
    cfg = RefineConfig(repeats=4)
    assert [cfg.copies(rank, 4) for rank in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert [RefineConfig(repeats=1).copies(rank, 9) for rank in range(1, 10)] == [1] * 9


def test_the_records_of_a_refined_set_are_counted_without_a_look_at_each_pair():
    for repeats, num_pairs in itertools.product((1, 2, 3, 4, 6, 9, 25), range(13)):
        cfg = RefineConfig(repeats=repeats)
        assert cfg.num_written(num_pairs) == sum(cfg.copies(rank, num_pairs) for rank in range(1, num_pairs + 1))
    assert RefineConfig(repeats=3).num_written(3 * 10**12) == 6 * 10**12


def test_copies_share_the_ignored_pixels_and_the_hardness_is_that_before_the_gate(tmp_path, student):
    pairs = ShardSet(make_pairs(tmp_path / "pairs", labels=True))
    both = refine_pairs(student, pairs.folder, tmp_path / "both", RefineConfig(pixel_gate=0.8, repeats=3))
    alone = refine_pairs(student, pairs.folder, tmp_path / "alone", RefineConfig(repeats=3))
    assert [one.key for one in ShardSet(both)] == [one.key for one in ShardSet(alone)]
    wanted, _, _ = plain_gate(plain_losses(student, pairs), 0.8)
    for one in ShardSet(both):
        assert np.array_equal(one.label, wanted[int(one.key[1])])
    assert read_json(both / "refine.json")["classes"]["sea"]["ignored_pixels"] == sum(
        int(((one.label == 0) & (label == 255)).sum()) for one, label in zip(pairs, wanted)
    )


# --- whole or absent --------------------------------------------------------------------------------------------------


def test_the_set_says_what_it_was_made_from(tmp_path, student):
    pairs = ShardSet(make_pairs(tmp_path / "pairs"))
    out = refine_pairs(student, pairs.folder, tmp_path / "out", RefineConfig(pixel_gate=2.0, repeats=2))
    facts = {"pairs": pairs.fingerprint, "student": weights_hash(student), "pixel_gate": 2.0, "repeats": 2}
    assert ShardSet(out).index.provenance == {"refined": facts, "pairs": pairs.index.provenance}
    assert read_json(out / "refine.json")["refined"] == facts and set(read_manifest(out)) == {"refine.json"}
    first = {path.name: path.read_bytes() for path in out.glob("*") if path.is_file()}
    refine_pairs(student, pairs.folder, out, RefineConfig(pixel_gate=2.0, repeats=2), overwrite=True)
    assert {path.name: path.read_bytes() for path in out.glob("*") if path.is_file()} == first


def test_what_cannot_be_refined_is_refused_with_a_remedy(tmp_path, student):
    pairs, cfg = make_pairs(tmp_path / "pairs"), RefineConfig(pixel_gate=1.25)
    other = write_student(tmp_path / "sos.safetensors", classes=SOS_CLASSES)
    real = tmp_path / "real"
    write_shards(real, [replace(one, label=one.sar % 5, soft_label=None) for one in ShardSet(pairs)], OSD_CLASSES)
    out = tmp_path / "out"
    for given, message in (
        ((student, pairs, out, RefineConfig()), "leaves the pairs as they are; set one"),
        ((other, pairs, out, cfg), "knows the classes sea, oil, the pairs sea, oil, look-alike"),
        ((student, real, out, cfg), "0 of 7 samples have soft labels; expected all"),
        ((student, pairs, pairs, cfg), "is the folder of the pairs themselves; give another"),
        ((student, tmp_path / "none", out, cfg), "none"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            refine_pairs(*given)
        assert not (out / "index.json").exists()
    refine_pairs(student, pairs, out, cfg)
    with pytest.raises(ValueError, match=r"holds a set of pairs already.*--overwrite"):
        refine_pairs(student, pairs, out, cfg)
    assert set(read_manifest(out)) == {"refine.json"} and verify(out) == []


KILLED = """
import os, signal, sys
from dakd.config import RefineConfig
from dakd.refine import losses, refine
of, left = losses.PairLosses.of, [int(sys.argv[4])]
def dying(self, sample):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return of(self, sample)
losses.PairLosses.of = dying
refine.refine_pairs(*sys.argv[1:4], RefineConfig(pixel_gate=1.25, repeats=2), overwrite=True, device="cpu")
"""


@pytest.mark.parametrize("call", [2, 9, 14])
def test_a_kill_leaves_no_set_or_the_earlier_one_and_the_same_command_finishes(tmp_path, student, call):
    pairs, out, cfg = make_pairs(tmp_path / "pairs"), tmp_path / "out", RefineConfig(pixel_gate=1.25, repeats=2)
    for earlier in (None, ShardSet(refine_pairs(student, pairs, tmp_path / "first", RefineConfig(repeats=3)))):
        if earlier is not None:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(earlier.folder, out)
        arguments = [sys.executable, "-c", KILLED, str(student), str(pairs), str(out), str(call)]
        assert subprocess.run(arguments, capture_output=True, env=dict(os.environ)).returncode == -signal.SIGKILL
        if earlier is None:
            assert not (out / "index.json").exists() and not list(out.glob("shard-*"))
        else:
            assert ShardSet(out).fingerprint == earlier.fingerprint and verify(out) == []
        refine_pairs(student, pairs, out, cfg, overwrite=True)
        assert verify(out) == [] and len(ShardSet(out)) == cfg.num_written(7) and not (out / ".partial").exists()


# --- in a run ---------------------------------------------------------------------------------------------------------


def run_with(tmp_path, refined, **train):
    """A toy run with pairs and a student of the set real that is not trained; `refined` are settings of refine."""
    config = with_pairs(tmp_path, student=TINY_MAMBA_STUDENT, **train)
    config = build_config(config.model_dump(mode="json") | {"refine": refined})
    write_student(config.real_student)
    return config


def test_epochs_that_are_counted_over_pairs_are_refused_and_those_of_real_views_are_not(tmp_path):
    tree = run_with(tmp_path, {"repeats": 2}).model_dump(mode="json")
    tree["train_saross"] |= {"steps": None, "epochs": 3, "training_sets": ["real", "real+synthetic"]}
    with pytest.raises(ValueError, match=r"refine.repeats needs the student .*over which .*set train_saross.steps"):
        build_config(tree)
    tree["train_saross"]["budget"] = "real_views"
    assert build_config(tree).refine.is_set


def test_students_are_trained_on_the_refined_pairs_where_settings_ask_for_them(tmp_path):
    config = run_with(tmp_path, {"pixel_gate": 1.0, "repeats": 2})
    with pytest.raises(ValueError, match=r"no refined pairs in .*refine ask for; run: dakd refine"):
        student_dataset(config, "synthetic")
    out = refine(config)
    assert out == config.run_path / "refine" and student_dataset(config, "real+synthetic").num_synthetic == 12
    training = StudentTraining(config, "synthetic")
    assert training.data == [ShardSet(out).fingerprint] and training.build(False).masks_pairs
    plain = config.model_copy(update={"refine": RefineConfig()})
    assert student_dataset(plain, "synthetic").num_synthetic == 8 and refine(plain) is None


def test_the_step_keeps_what_is_of_its_settings_and_replaces_what_is_not(tmp_path, capfd):
    config = run_with(tmp_path, {"pixel_gate": 1.0})
    out = refine(config)
    before = (out / "index.json").stat().st_mtime_ns
    refine(config)
    assert "nothing to do" in capfd.readouterr().out and (out / "index.json").stat().st_mtime_ns == before
    assert set(read_manifest(out)) == {"refine.json", "config.yaml"}
    (out / "refine.json").write_text("{}")  # damaged: made again
    refine(config)
    assert read_json(out / "refine.json")["num_pairs"] == 8
    other = config.model_copy(update={"refine": RefineConfig(pixel_gate=2.0)})
    refine(other)
    assert ShardSet(out).index.provenance["refined"]["pixel_gate"] == 2.0
    write_student(config.real_student, seed=1)
    refine(other)
    assert ShardSet(out).index.provenance["refined"]["student"] == weights_hash(config.real_student)
    assert "nothing to do" not in capfd.readouterr().out


def test_damaged_pairs_stop_the_step_or_are_left_out(tmp_path, capfd):
    config = run_with(tmp_path, {"pixel_gate": 1.0, "repeats": 2})
    pairs = ShardSet(config.unrefined_pairs)
    good = [pair for i, pair in enumerate(pairs) if i != 2]
    key = flip_byte(pairs, 2)
    with pytest.raises(BadRecord, match=f"{key}.*data.on_bad_record: skip to leave the sample out of refine"):
        refine(config)
    config = config.model_copy(update={"data": DataConfig(on_bad_record="skip")})
    made = ShardSet(refine(config))
    assert "left out of refine" in (shown := capfd.readouterr().out) and key in shown
    write_shards(tmp_path / "good", good, OSD_CLASSES)
    wanted = ShardSet(refine_pairs(config.real_student, tmp_path / "good", tmp_path / "out", config.refine))
    for one, other in zip(made, wanted, strict=True):
        assert one.key == other.key and np.array_equal(one.label, other.label)
    assert read_json(made.folder / "refine.json")["num_pairs"] == 7 and len(made) == config.refine.num_written(7)
    refine(config)
    assert "nothing to do; damaged samples left out: 1 (" in capfd.readouterr().out


def test_a_set_of_damaged_pairs_alone_is_refused(tmp_path):
    config = run_with(tmp_path, {"repeats": 2})
    pairs = ShardSet(config.unrefined_pairs)
    for i in range(len(pairs)):
        flip_byte(pairs, i)
    with pytest.raises(ValueError, match=r"none of 8 samples of .* can be read"):
        refine(config.model_copy(update={"data": DataConfig(on_bad_record="skip")}))


def test_a_set_that_was_refined_otherwise_is_refused_by_the_training(tmp_path):
    config = run_with(tmp_path, {"pixel_gate": 1.0})
    refine(config)
    refuse_other_refinement(config)
    with pytest.raises(ValueError, match=r"made with another repeats; set it back, or run dakd refine"):
        refuse_other_refinement(config.model_copy(update={"refine": RefineConfig(pixel_gate=1.0, repeats=2)}))
    write_student(config.real_student, seed=1)
    with pytest.raises(ValueError, match="made with another student;"):
        refuse_other_refinement(config)
    config.real_student.unlink()
    refuse_other_refinement(config)
    make_pairs(tmp_path / "others", count=9)
    shutil.rmtree(config.run_path / "generate")
    shutil.copytree(tmp_path / "others", config.run_path / "generate")
    with pytest.raises(ValueError, match="made with another pairs;"):
        refuse_other_refinement(config)


def test_a_set_of_other_settings_whose_replacement_was_killed_is_refused(tmp_path):
    config = run_with(tmp_path, {"pixel_gate": 1.0})
    remove_manifest(refine(config))  # as a kill leaves it while the new set is made
    refuse_other_refinement(config)
    with pytest.raises(ValueError, match="made with another pixel_gate; set it back"):
        refuse_other_refinement(config.model_copy(update={"refine": RefineConfig(pixel_gate=2.0)}))
    assert read_manifest(refine(config)) is not None


def test_a_temperature_of_the_student_changes_no_refined_set(tmp_path, capfd):
    config = run_with(tmp_path, {"pixel_gate": 1.0})
    refine(config)
    before, facts = load_state(config.real_student), read_metadata(config.real_student)
    save_weights(config.real_student, before, facts | {"temperature": 1.5})
    refuse_other_refinement(config)
    refine(config)
    assert "nothing to do" in capfd.readouterr().out


def test_the_step_names_the_training_that_it_needs(tmp_path):
    config = run_with(tmp_path, {"repeats": 2})
    config.real_student.unlink()
    with pytest.raises(ValueError, match=r"refine needs the student .*run dakd train_saross --training-set real first"):
        refine(config)


def test_epochs_over_pairs_that_are_not_there_yet_are_refused(tmp_path):
    tree = run_with(tmp_path, {"repeats": 2}).model_dump(mode="json")
    tree["train_saross"]["steps"] = None
    text = r"refine\.repeats needs the student of the set real before .*set train_saross\.steps"
    with pytest.raises(ValueError, match=text):
        build_config(tree)
    tree["train_saross"]["training_sets"] = ["real"]
    assert build_config(tree)
    tree["train_saross"]["training_sets"], tree["refine"] = ["real+synthetic"], {}
    assert build_config(tree)
    tree["generate"]["gate"] = {"enabled": True, "student": "real"}
    with pytest.raises(ValueError, match=r"generate\.gate\.student needs .*set train_saross\.steps"):
        build_config(tree)


def test_verify_knows_the_folder_and_its_repair(tmp_path):
    config = run_with(tmp_path, {"pixel_gate": 1.0})
    out = refine(config)

    def found():
        return {one.path.relative_to(out).as_posix(): one.state for one in verify_run(config.run_path)
                if one.state != "ok" and out in one.path.parents}  # fmt: skip

    assert found() == {}
    tar = out / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-3000] + b"x" * 3000)
    (out / "config.yaml").unlink()
    assert found() == {"shard-000000.tar": "damaged", "config.yaml": "missing"}


# --- commands ---------------------------------------------------------------------------------------------------------


def test_the_command_refines_a_folder_without_an_experiment(tmp_path, student, capsys):
    pairs, out = make_pairs(tmp_path / "pairs"), tmp_path / "out"
    command = ["--student", str(student), "--pairs", str(pairs), "--out", str(out), "--device", "cpu"]
    assert run_step("refine", [*command, "--pixel-gate", "1.25", "--repeats", "2"]) == 0
    assert "ignored, %" in capsys.readouterr().out
    wanted = refine_pairs(student, pairs, tmp_path / "wanted", RefineConfig(pixel_gate=1.25, repeats=2))
    assert ShardSet(out).fingerprint == ShardSet(wanted).fingerprint
    assert run_step("refine", [*command, "--pixel-gate", "-1", "--overwrite"]) == 1
    assert "pixel_gate" in capsys.readouterr().err
    for wrong in (command[:2], [*command, "seed=1"], ["--config", "demo", "--repeats", "2"]):
        with pytest.raises(SystemExit):
            run_step("refine", wrong)


def test_the_command_refines_a_run(tmp_path, capsys):
    config = run_with(tmp_path, {"repeats": 2})
    path = tmp_path / "toy.yaml"
    path.write_text(dump_config(config))
    assert run_step("refine", ["--config", str(path)]) == 0, capsys.readouterr().err
    assert json.loads((config.run_path / "refine" / "refine.json").read_text())["num_written"] == 12
    assert run_step("refine", ["--config", str(path), "refine.repeats=1"]) == 0
    assert "students take the pairs as they are" in capsys.readouterr().out
