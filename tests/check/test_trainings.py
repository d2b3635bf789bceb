"""What `dakd check` says of the trainings of an experiment."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from check_worlds import folder, refusals, toy
from evaluate_worlds import scene, write_set
from tiny_sam import save_tiny_sam, tiny_sam_oil
from tiny_students import TINY_STUDENT
from worlds import teacher_file, with_pairs, with_teacher

from dakd.check.check import check
from dakd.config import Config, StudentConfig, build_config
from dakd.data.sample import OSD_CLASSES, ClassTable
from dakd.data.shards import ShardSet
from dakd.models.registry import build_student
from dakd.runtime.tensor_files import save_weights
from dakd.train.checkpoint import write_state
from dakd.train.jointnet import training_of_stage
from dakd.train.saross import StudentTraining, student_folder
from dakd.weights import save_student


def test_a_pretrained_encoder_that_is_none_is_refused(tmp_path):
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    (tmp_path / "folder").mkdir()
    teacher = teacher_file(with_teacher(tmp_path / "other"))
    for path, what in (
        (tmp_path / "garbage.pth", "is not a whole file of plain tensors"),
        (tmp_path / "folder", "is a folder; give the file"),
        (tmp_path / "absent.pth", "does not exist"),
        (teacher, r"weights of .* do not fit \w+; build"),
    ):
        config = toy(tmp_path, train_saross__student=TINY_STUDENT | {"pretrained": str(path)})
        assert re.search(what, refusals(config)["student"])
    net = build_student(StudentConfig(**TINY_STUDENT), 5)
    torch.save(net.encoder.state_dict(), tmp_path / "good.pth")
    good = TINY_STUDENT | {"pretrained": str(tmp_path / "good.pth")}
    assert refusals(toy(tmp_path, train_saross__student=good)) == {}


def test_a_folder_of_sam_is_read_and_damaged_weights_in_it_are_refused(tmp_path):
    student = tiny_sam_oil(save_tiny_sam(tmp_path / "sam"))
    config = toy(tmp_path, train_saross__student=student)
    assert refusals(config) == {}
    (tmp_path / "sam" / "model.safetensors").write_bytes(b"garbage")
    assert "cannot be read" in refusals(config)["student"]


def test_a_student_that_resumes_needs_no_pretrained_encoder(tmp_path):
    student = TINY_STUDENT | {"pretrained": str(tmp_path / "absent.pth")}
    config = toy(tmp_path, train_saross__student=student, train_saross__training_sets=["real"])
    assert "student" in refusals(config)
    write_state(student_folder(config, "real") / "checkpoints" / "step-00000001", {}, {"identity": {}, "step": 1})
    assert "student" not in refusals(config)


def test_a_start_that_does_not_fit_or_is_damaged_is_refused(tmp_path):
    path = tmp_path / "student.safetensors"
    cfg = StudentConfig(**TINY_STUDENT)
    for net, classes, what in (
        (cfg, ClassTable(("sea", "oil"), ((0, 0, 0), (1, 1, 1))), r"classes: \('sea', 'oil'\) there"),
        (cfg.model_copy(update={"caft_ratio": 0.25}), OSD_CLASSES, r"caft_ratio: 0\.25 there, 0\.5 now"),
        (cfg, OSD_CLASSES, None),
    ):
        save_student(path, build_student(net, classes.num_classes), net, classes, {})
        found = refusals(toy(tmp_path, train_saross__student=TINY_STUDENT, train_saross__init_from=str(path)))
        assert found == {} if what is None else re.search(what, found["student"])
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = refusals(toy(tmp_path, train_saross__student=TINY_STUDENT, train_saross__init_from=str(path)))
    assert "has changed since dakd wrote it" in found["student"]
    path.unlink()
    found = refusals(toy(tmp_path, train_saross__student=TINY_STUDENT, train_saross__init_from=str(path)))
    assert "which is no file; expected a student.safetensors" in found["student"]


def test_a_mosaic_of_odd_sides_is_refused(tmp_path):
    changes = dict(train_saross__mosaic=True, train_saross__crop=[63, 64], generate__num_samples=8)
    assert "crop (63, 64) is odd" in refusals(toy(tmp_path, **changes))["training sets"]
    assert refusals(toy(tmp_path, **changes, train_saross__training_sets=["real"])) == {}


def test_extra_images_that_are_no_set_of_shards_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.yaml").write_text("name: one")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "index.json").write_text("{}")
    places = {str(tmp_path / name): "is not a set of shards" for name in ("empty", "one.yaml", "absent")}
    places |= {str(tmp_path / "damaged"): "damaged/index.json", "pipe:false": "is a pipe"}
    found = refusals(toy(tmp_path, train_jointnet__stage1__extra_images=list(places)))["extra images"]
    assert [what in line for what, line in zip(places.values(), found.splitlines(), strict=True)] == [True] * 5


def test_extra_images_are_counted_and_bare_tars_are_not_indexed(tmp_path):
    write_set(tmp_path / "set", [scene("a", 1)])
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.tar").write_bytes(b"")
    config = toy(tmp_path, train_jointnet__stage1__extra_images=[str(tmp_path / "set"), str(tmp_path / "bare")])
    texts = [finding.text for finding in check(config) if finding.topic == "extra images"]
    assert texts == [f"{tmp_path}/set: 1 images", f"{tmp_path}/bare: 1 tars without an index"]
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["a.tar"]


def test_streams_are_not_run_and_fewer_than_readers_are_refused(tmp_path):
    streams = [f"pipe:touch {tmp_path}/touched; false"]
    findings = check(toy(tmp_path, train_jointnet__stage1__streams=streams))
    assert [one.level for one in findings if one.topic == "extra images"] == ["warn"]
    assert not (tmp_path / "touched").exists()
    config = toy(tmp_path, train_jointnet__stage1__streams=streams, train_jointnet__engine__num_workers=2)
    assert "1 streams for 1 ranks x 2 readers" in refusals(config)["extra images"]


def trained(tmp_path) -> Config:
    """A run whose trainings all have a checkpoint, and what they were trained on."""
    tree = with_pairs(tmp_path).model_dump(mode="json")
    tree["train_jointnet"]["crop"] = tree["generate"]["size"] = [32, 32]
    tree["generate"]["num_samples"] = len(ShardSet(tmp_path / "run" / "generate"))
    config = build_config(tree)
    for one in config.train_jointnet.stages:
        training = training_of_stage(config, one)
        write_state(training.checkpoints / "step-00000001", {}, {"identity": training.identity, "step": 1})
        facts = {"kind": "jointnet", "sigma_data": training.sigma_data}
        save_weights(training.weights_file("ema"), training.new_net().state_dict(), facts)
    for one in config.train_saross.training_sets:
        training = StudentTraining(config, one)
        write_state(training.checkpoints / "step-00000001", {}, {"identity": training.identity, "step": 1})
    return config


@pytest.mark.parametrize(("removed", "num_warnings"), [
    ("generate", 1), ("prepare", 1), ("train_jointnet/stage1", 1), ("train_jointnet/stage1/checkpoints", 0),
])  # fmt: skip
def test_what_an_earlier_step_makes_again_is_not_demanded_of_a_run_that_resumes(tmp_path, removed, num_warnings):
    config = trained(tmp_path)
    assert refusals(config) == {}
    shutil.rmtree(config.run_path / removed)
    assert refusals(config) == {}
    levels = [one.level for one in check(config) if one.topic == "resume"]
    assert levels.count("warn") == num_warnings and ("ok" in levels) == (num_warnings == 0)


def test_what_is_still_there_is_compared_where_the_pairs_were_removed(tmp_path):
    config = trained(tmp_path)
    shutil.rmtree(config.run_path / "generate")
    tree = config.model_dump(mode="json")
    tree["train_saross"]["flip"] = False
    found = refusals(build_config(tree))["resume"]
    assert "train_saross/real/" in found and "flip: True there, False now" in found and "real+synthetic" not in found


def test_another_number_of_pairs_is_refused_before_it_replaces_those_of_a_trained_student(tmp_path):
    tree = trained(tmp_path).model_dump(mode="json")
    tree["generate"]["num_samples"] += 4
    found = refusals(build_config(tree))["resume"]
    assert "real+synthetic was trained beside" in found and "train_saross/real was" not in found
    assert "set it back, or remove that folder" in found


def test_training_images_without_labels_are_refused_and_a_stage_of_warm_up_alone_is_reported(tmp_path):
    data = folder(tmp_path / "data")
    config = toy(tmp_path, prepare=data, train_jointnet__stage2__steps=2)
    texts = [one.text for one in check(config) if one.topic == "teacher" and one.level == "warn"]
    assert texts == ["warmup_steps 2 last as long as a stage of 2 steps"]
    shutil.rmtree(tmp_path / "data" / "train" / "masks")
    assert "6 of 6 training images have no labels; expected all" in refusals(config)["training sets"]


def test_the_held_out_part_is_counted_and_one_that_leaves_nothing_is_refused(tmp_path):
    def of(**validation):
        config = toy(tmp_path, train_saross__validation=validation)
        return [(one.level, one.text) for one in check(config) if one.topic == "held out"]

    assert of() == []
    assert of(share=0.25) == [("ok", "3 of 12 training images are held out for validation")]
    text = "validation.every 4 leaves one scoring in 4 steps, and so nothing to choose from"
    assert of(share=0.25, keep="best", every=4)[-1] == ("warn", text)
    ((level, text),) = of(share=0.99)
    assert level == "refused" and "holds out 12, and none is left to train on" in text


def test_prepared_images_are_held_out_as_the_training_does_it(tmp_path):
    tree = with_pairs(tmp_path).model_dump(mode="json")
    tree["train_saross"]["validation"] = {"share": 0.95}
    config = build_config(tree)
    assert re.search("holds out 11, but beyond .* no sample left with", refusals(config)["held out"])


def test_refined_pairs_are_counted_and_their_ignored_pixels_refuse_correlations(tmp_path):
    changes = dict(generate__num_samples=8, train_saross__num_synthetic=12)
    assert "num_synthetic is 12 of 8" in refusals(toy(tmp_path, **changes))["training sets"]
    assert refusals(toy(tmp_path, **changes, refine__repeats=2)) == {}
    assert "is 13 of 12" in refusals(toy(tmp_path, **changes | {"train_saross__num_synthetic": 13}, refine__repeats=2))[
        "training sets"
    ]
    dist = dict(train_saross__loss={"kd_form": "dist"})
    assert refusals(toy(tmp_path, **dist, refine__repeats=2)) == {}
    assert "kd_form is dist, which" in refusals(toy(tmp_path, **dist, refine__pixel_gate=1.25))["training sets"]
