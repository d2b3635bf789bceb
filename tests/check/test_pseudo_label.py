"""`dakd check` finds what self-training lacks before the first step."""

from __future__ import annotations

import shutil

from check_worlds import folder, refusals, toy
from pseudo_worlds import with_student, with_unlabelled

from dakd.check.check import check
from dakd.data.prepare import prepare
from dakd.pseudo_label.step import pseudo_label

SETS = ["real", "real+pseudo"]


def findings(config, topic: str) -> list[tuple[str, str]]:
    return [(one.level, one.text) for one in check(config) if one.topic == topic]


def test_an_experiment_without_pseudo_labels_has_no_such_finding(tmp_path):
    assert findings(toy(tmp_path), "pseudo label") == []


def test_self_training_needs_the_real_student_and_images_without_labels(tmp_path):
    config = toy(tmp_path, train_saross__training_sets=["real+pseudo"])
    found = refusals(config)
    assert set(found) == {"pseudo label"}
    assert "there are no images without labels; put them beside the labelled images" in found["pseudo label"]
    prepare(config)
    assert set(refusals(config)) == {"pseudo label"}


def test_a_prepared_run_with_images_without_labels_is_accepted(tmp_path):
    config = toy(tmp_path, train_saross__training_sets=SETS)
    prepare(config)
    disk = findings(config, "disk")
    with_unlabelled(config, sizes=((2048, 2048),) * 5)
    assert refusals(config) == {}
    assert findings(config, "pseudo label") == [("ok", "5 images without labels, fp16")]
    gib = [float(found[0][1].split()[1]) for found in (disk, findings(config, "disk"))]
    # Of 5 images of 4 Mi pixels with five logits in half precision each.
    assert abs(gib[1] - gib[0] - 5 * 2048**2 * 11 / 2**30) < 0.02


def with_unmasked(root, count: int, size=(2048, 1024)) -> dict:
    """The settings of a dataset of four labelled images, with `count` training images without masks beside them."""
    settings = folder(root, count=4, size=size) | {"on_missing_mask": "image_only"}
    for i in range(count):
        shutil.copyfile(root / "train" / "images" / "0.png", root / "train" / "images" / f"more{i}.png")
    return settings


def test_the_disk_of_pseudo_labels_is_known_before_the_images_are_prepared(tmp_path):
    data, sizes = with_unmasked(tmp_path / "data", 20), []
    for resize in (None, [64, 64]):
        config = toy(tmp_path, prepare=data | {"resize": resize}, train_saross__training_sets=SETS)
        ((_, text),) = findings(config, "disk")
        assert " free: 0 pairs, 20 pseudo-labelled images, " in text
        sizes.append(float(text.split()[1]))
    # Of 20 images of 2 Mi pixels: a byte of grey, two logits in half precision.
    assert abs(sizes[0] - sizes[1] - 20 * 2048 * 1024 * 5 / 2**30) < 0.02


def test_a_teacher_that_the_pipeline_does_not_make_is_not_judged(tmp_path):
    """Its crop, its memory and its disk; checkpoints of other settings, too."""
    odd = {"train_jointnet__crop": [99, 99], "generate__size": [98, 98]}
    data = with_unmasked(tmp_path / "data", 6, (64, 64))
    config = toy(tmp_path, prepare=data, train_saross__training_sets=SETS, **odd)
    assert refusals(config) == {}
    assert findings(config, "teacher") == [
        ("ok", "the pipeline makes none: no student of real, real+pseudo learns from its pairs")
    ]
    text = "\n".join(one.text for one in check(config))
    assert findings(config, "generate") == [] and "teacher:" not in text and "train_jointnet" not in text
    # One that it makes is.
    config = toy(tmp_path, prepare=data, train_saross__training_sets=["real", "real+synthetic"], **odd)
    assert "teacher" in refusals(config)


def test_labelled_images_that_nearly_vanish_among_others_are_named(tmp_path):
    data = with_unmasked(tmp_path / "data", 60, (64, 64))
    found = findings(toy(tmp_path, prepare=data, train_saross__training_sets=SETS), "training sets")
    assert ("warn", "real+pseudo: 4 real images beside 60 pairs are 6.2 % of the samples that this student sees; set "
            "train_saross.synthetic_share, such as 0.5") in found  # fmt: skip
    for enough in ({"train_saross__synthetic_share": 0.5}, {"pseudo_label__max_samples": 30}):
        found = findings(toy(tmp_path, prepare=data, train_saross__training_sets=SETS, **enough), "training sets")
        assert [level for level, _ in found] == ["ok"]


def test_a_set_of_another_student_is_refused_before_the_training(tmp_path):
    config = toy(tmp_path, train_saross__training_sets=SETS, train_saross__crop=[32, 32])
    prepare(config)
    with_unlabelled(config)
    with_student(config)
    pseudo_label(config)
    assert refusals(config) == {}
    with_student(config, seed=1)
    assert "was labelled with other settings (student: " in refusals(config)["pseudo label"]
    shutil.rmtree(config.run_path / "pseudo_label")
    assert refusals(config) == {}


def test_codecs_of_sets_that_are_mixed_must_agree(tmp_path):
    mixed = {"train_saross__training_sets": ["real", "real+synthetic+pseudo"], "generate__codec": "logprob8"}
    config = toy(tmp_path, **mixed)
    prepare(config)
    with_unlabelled(config)
    text = refusals(config)["training sets"]
    assert "the training set real+synthetic+pseudo mixes soft labels of different kinds: fp16, codes of 18.4" in text
    assert refusals(toy(tmp_path, **mixed, pseudo_label__codec="logprob8")) == {}
    assert refusals(toy(tmp_path, **mixed, train_saross__loss__hard_labels=True)) == {}
    apart = mixed | {"train_saross__training_sets": ["real", "real+synthetic", "real+pseudo"]}
    assert refusals(toy(tmp_path, **apart)) == {}


def test_too_few_images_for_a_mosaic_are_refused(tmp_path):
    settings = {"train_saross__training_sets": SETS, "train_saross__mosaic": True, "pseudo_label__max_samples": 3}
    config = toy(tmp_path, **settings)
    prepare(config)
    with_unlabelled(config)
    assert "found 3 pseudo-labelled images; expected 4 or more" in refusals(config)["training sets"]
    assert refusals(toy(tmp_path, **settings | {"train_saross__mosaic": False})) == {}
