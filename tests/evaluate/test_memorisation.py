"""The memorisation audit finds copies of training images, and passes new images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from worlds import toy_config, with_teacher

from dakd.cli import run_step
from dakd.config import AuditConfig, SimulationConfig, build_config, dump_config
from dakd.data.joined_sets import JoinedSets
from dakd.data.prepare import prepare
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.data.shards import ShardSet, write_index, write_shard
from dakd.data.simulate import simulate
from dakd.evaluate import memorisation, memorisation_report
from dakd.evaluate.memorisation import audit_sets, find_neighbours
from dakd.evaluate.neighbours import (
    FLIPS,
    MEASURES,
    Window,
    block_means,
    evenly,
    grey_gradient_pyramid,
    most_similar,
    nearest_features,
    normalised,
    sliding_windows,
    windows_of,
)
from dakd.generate.generate import generate
from dakd.models.registry import build_student
from dakd.runtime import distributed
from dakd.verify import verify_run
from dakd.weights import save_student

SIZE = (32, 32)


@pytest.fixture(autouse=True)
def blocks_of_four_pixels(monkeypatch):
    monkeypatch.setattr(memorisation, "CELLS", 8)


def scenes(first: int, count: int, size=(64, 96)) -> list[Sample]:
    cfg = SimulationConfig(size=size, oil_share=0.1, land_share=0.15)
    return [simulate(first + i, cfg, seed=0) for i in range(count)]


def write(folder, samples: list[Sample], kind="real") -> ShardSet:
    write_shard(folder, 0, samples, OSD_CLASSES, codec="fp16")
    write_index(folder, OSD_CLASSES, kind=kind)
    return ShardSet(folder)


def cut(sample: Sample, top: int, left: int, key: str) -> Sample:
    h, w = SIZE
    part = replace(sample, key=key, sar=sample.sar[top : top + h, left : left + w].copy())
    return replace(part, label=sample.label[top : top + h, left : left + w].copy())


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Training and held-out scenes, and 20 windows: new ones, but number 7 is a training one, mirrored and noisy."""
    folder = tmp_path_factory.mktemp("audit")
    train, held_out = scenes(0, 12), scenes(100, 4)
    new = [cut(scene, 16, 32, f"new-{i:02d}") for i, scene in enumerate(scenes(200, 20))]
    copy = cut(train[3], 14, 40, "new-07")
    noise = np.random.default_rng(0).normal(0, 6, SIZE)
    sar = np.clip(copy.sar[:, ::-1] * 0.8 + 15 + noise, 0, 255).round().astype(np.uint8)
    new[7] = replace(copy, sar=sar, label=copy.label[:, ::-1].copy())
    return (write(folder / "synthetic", new, "synthetic"), write(folder / "train", train),
            write(folder / "test", held_out))  # fmt: skip


def test_a_planted_copy_of_a_training_image_is_found_named_and_drawn_first(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(memorisation_report, "NUM_PICTURES", 3)
    text = audit_sets(*sets, AuditConfig(), "sea", tmp_path)
    content = json.loads((tmp_path / "audit.json").read_text())
    assert content["suspects"][0] == ["new-07", "grain"] and len(content["suspects"]) == 3
    pair = content["pairs"][7]
    wanted = {"training": "sim-00000003", "mirrored": "left-right", "below_limit": True}
    assert pair["grain"] == pair["grain"] | wanted | {"top_left": [14, 40]}
    assert pair["blocks"] == pair["blocks"] | wanted | {"top_left": [pair["blocks"]["top_left"][0], 40]}
    assert abs(pair["blocks"]["top_left"][0] - 14) == 2  # windows slide by a block of 4 pixels
    distances = sorted(one["grain"]["distance"] for one in content["pairs"])
    assert pair["grain"]["distance"] == distances[0] < 0.5 * distances[1]
    assert content["yardstick"] == "held out" and next(iter(content["sets"])) == "synthetic"
    assert text == (tmp_path / "audit.txt").read_text().rstrip("\n")
    assert "new-07" in text and "grey_gradient_pyramid" in text and "equivalent number of looks" in text
    with Image.open(tmp_path / "nearest.png") as picture:
        assert picture.height > 3 * 160


def test_a_copy_of_an_image_without_a_label_is_found_too(sets, tmp_path):
    """Stage 1 of the teacher sees them: the copied scene is one of those that were set aside."""
    synthetic, train, held_out = sets
    samples = [train.read(i) for i in range(len(train))]
    labelled = write(tmp_path / "train", samples[:3] + samples[4:6])
    aside = write(tmp_path / "aside", [replace(one, label=None) for one in (samples[3], *samples[6:])])
    joined = JoinedSets([labelled, aside])
    assert [joined.key(i) for i in (0, 4, 5, 11)] == [labelled.key(0), labelled.key(4), "sim-00000003", aside.key(6)]
    assert np.array_equal(joined.read(5).sar, samples[3].sar) and joined.size(5) == (64, 96) and len(joined) == 12
    assert JoinedSets([labelled]).fingerprint == labelled.fingerprint != joined.fingerprint
    with pytest.raises(IndexError, match="image 12 of 12"):
        joined.read(12)
    audit_sets(synthetic, joined, held_out, AuditConfig(), "sea", tmp_path / "audit")
    pair = json.loads((tmp_path / "audit" / "audit.json").read_text())["pairs"][7]
    assert pair["grain"]["training"] == "sim-00000003" and pair["grain"]["below_limit"]


def test_the_audit_of_a_run_reads_the_images_without_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cpu"))
    config = with_teacher(tmp_path / "run")
    tree = config.model_dump(mode="json")
    total = tree["prepare"]["simulation"]["num_train"]
    tree["prepare"]["num_labelled"] = total - 4
    config = build_config(tree)
    prepare(config)
    generate(config)
    seen = []
    monkeypatch.setattr(memorisation, "audit_sets", lambda synthetic, train, *_: seen.append(len(train)) or "")
    memorisation.audit(config)
    assert seen == [total]


def test_held_out_windows_are_as_far_from_the_training_windows_as_these_from_one_another(sets):
    _, train, held_out = sets
    found = find_neighbours(train, [(held_out, windows_of(held_out, SIZE)), (train, windows_of(train, SIZE))], SIZE)
    for measure in MEASURES:
        outside, within = (np.median(one[measure].distances) for one in found)
        assert outside == pytest.approx(within, rel=0.25) and within > 0


def test_a_training_window_never_meets_its_own_image(sets):
    _, train, _ = sets
    windows = windows_of(train, SIZE)
    (found,) = find_neighbours(train, [(train, windows)], SIZE)
    for measure in MEASURES:
        assert all(own.image != other.image for own, other in zip(windows, found[measure].windows))
    (other,) = find_neighbours(train, [(ShardSet(train.folder), windows)], SIZE)
    assert np.abs(other["features"].distances).max() < 1e-4  # the same images as another set: every window finds itself
    assert [w.image for w in other["features"].windows] == [w.image for w in windows]


def test_nearest_is_what_comparing_all_with_all_finds():
    chance = torch.Generator().manual_seed(0)
    queries, references = torch.randn(4, 40, 9, generator=chance), torch.randn(2500, 9, generator=chance)
    owners = torch.randint(-1, 5, (40,), generator=chance)
    theirs = torch.randint(0, 5, (2500,), generator=chance)
    distances, reference, flip = nearest_features(queries, owners, references, theirs)
    every = torch.cdist(queries.double(), references.double())
    every[:, owners[:, None] == theirs] = torch.inf
    wanted, place = every.permute(1, 0, 2).flatten(1).min(dim=1)
    torch.testing.assert_close(distances.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(flip, place // 2500) and torch.equal(reference, place % 2500)
    none = most_similar(queries, torch.zeros(40), [(references, torch.zeros(2500))])
    assert (none.score == -torch.inf).all()


def test_a_distance_to_a_copy_is_zero_although_its_square_is_expanded():
    vectors = 1e3 * torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    distances, reference, _ = nearest_features(vectors[None], torch.full((50,), -1), vectors, torch.arange(50))
    assert (distances == 0).all() and torch.equal(reference, torch.arange(50))


def test_block_means_are_blind_to_brightness_and_contrast_and_plain_surfaces_match_nothing():
    sar = torch.as_tensor(scenes(0, 1)[0].sar)[None]
    one, other = (normalised(block_means(image, 16).flatten(1)) for image in (sar, sar // 2 + 60))
    assert (one @ other.T).item() > 0.999
    assert (normalised(block_means(torch.full_like(sar, 90), 16).flatten(1)) == 0).all()


def test_windows_slide_over_the_whole_image_by_a_cell(sets):
    _, train, _ = sets
    ((places, vectors),) = sliding_windows(train, SIZE, 8, [2])
    assert len(places) == len(vectors) == (1 + 32 // 4) * (1 + 64 // 4)
    image, top, left = places[-1].tolist()
    assert (image, top, left) == (2, 32, 64)
    window = torch.as_tensor(train.read(2).sar[top : top + 32, left : left + 32])[None]
    torch.testing.assert_close(vectors[-1:], normalised(block_means(window, 8).flatten(1)))


def test_windows_of_images_cover_them_and_small_images_have_one(tmp_path):
    shards = write(tmp_path, [replace(scenes(0, 1, shape)[0], key=f"{i}") for i, shape in
                              enumerate([(32, 32), (8, 40), (33, 70)])])  # fmt: skip
    places = [(w.top, w.left) for w in windows_of(shards, SIZE) if w.image == 2]
    assert places == [(0, 0), (0, 16), (0, 32), (0, 38), (1, 0), (1, 16), (1, 32), (1, 38)]
    assert [w for w in windows_of(shards, SIZE) if w.image == 0] == [Window(0, 0, 0)]
    assert [(w.top, w.left) for w in windows_of(shards, SIZE) if w.image == 1] == [(0, 0), (0, 8)]
    assert evenly([*range(10)], 4) == [0, 2, 5, 7] and evenly([1, 2], 5) == [1, 2]


def test_features_see_greys_and_orientations():
    stripes = torch.zeros(1, 32, 32, dtype=torch.uint8)
    stripes[:, ::4] = 200
    found = grey_gradient_pyramid(torch.cat([stripes, stripes.mT, stripes.flip(1)]))
    assert found.shape == (3, 126) and found.isfinite().all()
    assert (found[0] - found[1]).norm() > 3 * (found[0] - found[2]).norm()
    assert len(FLIPS) == 4


def test_a_students_encoder_may_make_the_features(sets, tmp_path):
    cfg = toy_config(tmp_path / "run").train_saross.student
    torch.manual_seed(0)
    save_student(tmp_path / "student.safetensors", build_student(cfg, 5), cfg, OSD_CLASSES, {})
    audit_cfg = AuditConfig(student=str(tmp_path / "student.safetensors"), max_samples=5)
    train = write(tmp_path / "train", [cut(scene, 0, 0, scene.key) for scene in scenes(0, 4)])
    audit_sets(sets[0], train, None, audit_cfg, "sea", tmp_path)
    content = json.loads((tmp_path / "audit.json").read_text())
    assert content["extractor"] == "student encoder" and len(content["student"]) == 64 and len(content["pairs"]) == 5
    assert all(0 < pair["features"]["distance"] < 1e3 for pair in content["pairs"])


def test_without_held_out_images_the_training_images_are_the_yardstick(sets, tmp_path):
    synthetic, train, _ = sets
    audit_sets(synthetic, train, None, AuditConfig(), "sea", tmp_path)
    content = json.loads((tmp_path / "audit.json").read_text())
    assert content["yardstick"].startswith("training") and content["suspects"][0][0] == "new-07"
    alone = write(tmp_path / "alone", [train.read(0)])
    with pytest.raises(ValueError, match="expected at least 2"):
        audit_sets(synthetic, alone, None, AuditConfig(), "sea", tmp_path)


def test_the_command_audits_a_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cpu"))
    config = with_teacher(tmp_path / "run")
    (tmp_path / "run.yaml").write_text(dump_config(config))
    command = ["--config", str(tmp_path / "run.yaml"), "--audit"]
    assert run_step("generate", command) == 1
    assert "is not a set of shards" in capfd.readouterr().err
    prepare(config, config.run_path)
    generate(config)
    assert run_step("generate", command) == 0
    assert "the nearest pairs" in capfd.readouterr().out
    folder = config.run_path / "generate" / "audit"
    assert {path.name for path in folder.iterdir()} == {"audit.json", "audit.txt", "nearest.png", "manifest.json"}
    (folder / "audit.txt").write_text("nothing was found\n")
    changed = {one.path.name: one.state for one in verify_run(config.run_path) if "audit" in one.path.parts}
    assert changed.pop("audit.txt") == "damaged" and set(changed.values()) == {"ok"}
