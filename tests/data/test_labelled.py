"""Few labels among many images: which training images keep theirs, and that no other mask is opened."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dakd.check.check import check
from dakd.cli import main
from dakd.config import Config, build_config, load_config
from dakd.data.labelled import choose_labelled, open_with_as_many
from dakd.data.prepare import prepare
from dakd.data.prepared import find_unlabelled, open_prepared
from dakd.data.readers import BadDataset
from dakd.data.readers.folder import FolderDataset
from dakd.data.shards import ShardSet
from dakd.train.jointnet import train_jointnet, training_of_stage

CLASSES = {"sea": (0, 0, 0), "oil": (0, 255, 255)}
SHAPE = (16, 16)
TEACHER = {
    "unet": {"channels": [8, 8], "blocks_per_level": 1, "attention_levels": [], "norm_groups": 4},
    "crop": list(SHAPE), "global_batch": 4, "micro_batch": 4,
    "engine": {"num_workers": 0, "threads": 1, "wandb": "off", "sample_every": 0},
    "stage1": {"steps": 2}, "stage2": {"steps": 2}, "stage3": {"steps": 2},
}  # fmt: skip


def make_folder(root: Path, count: int = 20) -> Path:
    """Images of which every fourth has no oil; a test split of four."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 4)):
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
        for i in range(number):
            mask = np.zeros(SHAPE, np.uint8)
            mask[:8] = 1 if i % 4 else 0
            image = rng.integers(0, 256, SHAPE).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"tile{i}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"tile{i}.png")
    return root


def config(tmp_path: Path, root: Path, run: str = "run", seed: int = 0, **settings) -> Config:
    own = {"dataset": "folder", "root": str(root), "classes": CLASSES, "shard_size": 8}
    tree = {"name": "few", "run_dir": str(tmp_path / run), "seed": seed, "prepare": own | settings}
    return build_config(tree | {"train_jointnet": TEACHER})


def keys_of(folder: Path) -> list[str]:
    shards = ShardSet(folder)
    return [shards.key(i) for i in range(len(shards))]


def spoil(masks: Path, kept: list[str]) -> int:
    """Replace the masks of all other images by bytes that are no picture; how many."""
    others = [path for path in masks.iterdir() if path.stem not in kept]
    for path in others:
        path.write_bytes(b"garbage " * 20)
    return len(others)


def tars_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_smaller_choice_is_part_of_a_larger_one_and_holds_each_combination_in_its_share(seed):
    sizes = {frozenset({0}): 71, frozenset({0, 1}): 160, frozenset({1}): 19}
    presence = {f"{i}-{''.join(map(str, sorted(one)))}": one for one, count in sizes.items() for i in range(count)}
    total, before = len(presence), set()
    for count in range(1, total + 1):
        chosen = choose_labelled(presence, count, seed)
        assert len(set(chosen)) == count and before < set(chosen)
        before = set(chosen)
        held = Counter(presence[key] for key in chosen)
        for one, size in sizes.items():
            # A combination is off by half a sample, and so are the others, which shift the length of the beginning.
            assert abs(held[one] - count * size / total) <= 0.5 + len(sizes) / 2 * size / total


def test_other_seeds_choose_other_images_and_the_order_of_the_files_does_not_matter():
    presence = {f"k{i}": frozenset({0, i % 2}) for i in range(60)}
    first = choose_labelled(presence, 20, 0)
    assert choose_labelled(dict(reversed(presence.items())), 20, 0) == first
    assert set(choose_labelled(presence, 20, 1)) != set(first)
    assert sorted(choose_labelled(presence, 60, 1)) == sorted(presence)


def test_more_labels_than_there_are_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_labelled is 21, and 20 training images have labels"):
        prepare(config(tmp_path, make_folder(tmp_path / "data"), num_labelled=21))
    assert not (tmp_path / "run" / "prepare").exists()


# --- packing ----------------------------------------------------------------------------------------------------------


def test_the_others_are_packed_as_images_alone_and_the_test_split_stays_whole(tmp_path):
    cfg = config(tmp_path, make_folder(tmp_path / "data"), num_labelled=8)
    report = prepare(cfg).report
    train, rest = open_prepared(cfg, "train"), find_unlabelled(cfg)
    keys, others = keys_of(train.folder), keys_of(rest.folder)
    assert len(keys) == 8 and len(others) == 12 and sorted([*keys, *others]) == sorted(f"tile{i}" for i in range(20))
    assert train.index.num_labelled == 8 and rest.index.num_labelled == 0 and rest.index.num_soft == 0
    assert sum(not (train.read(i).label == 1).any() for i in range(8)) == 2
    assert len(open_prepared(cfg, "test")) == 4 and report["unread"] == []
    assert (train.folder.parent / "labelled.txt").read_text().split() == keys
    images = {path.stem: np.array(Image.open(path)) for path in (tmp_path / "data/train/images").iterdir()}
    for i, key in enumerate(others):
        sample = rest.read(i)
        assert sample.label is None and np.array_equal(sample.sar, images[key])


def test_simulated_scenes_beyond_the_number_lose_their_labels(tmp_path):
    simulation = {"num_train": 10, "num_test": 2, "size": [16, 16]}
    tree = {"name": "sim", "run_dir": str(tmp_path / "run"), "prepare": {"simulation": simulation, "num_labelled": 3}}
    cfg = build_config(tree)
    prepare(cfg)
    assert len(open_prepared(cfg, "train")) == 3 and len(find_unlabelled(cfg)) == 7
    assert all(find_unlabelled(cfg).read(i).label is None for i in range(7))


def test_the_list_of_a_choice_gives_the_same_shards_from_masks_of_garbage(tmp_path):
    """No mask but those of the list is opened: the others hold bytes that no reader takes."""
    root = make_folder(tmp_path / "data")
    chosen = config(tmp_path, root, "chosen", num_labelled=6)
    prepare(chosen)
    listed = tmp_path / "chosen" / "prepare" / "labelled.txt"
    spoilt = Path(shutil.copytree(root, tmp_path / "spoilt"))
    assert spoil(spoilt / "train" / "masks", listed.read_text().split()) == 14
    by_list = config(tmp_path, spoilt, "listed", labelled=str(listed))
    prepare(by_list)
    for split in ("train", "unlabelled", "test"):
        assert tars_of(tmp_path / "chosen/prepare" / split) == tars_of(tmp_path / "listed/prepare" / split) != {}
    unprepared = config(tmp_path, spoilt, "unprepared", labelled=str(listed))
    assert not [one for one in check(unprepared, 1) if one.topic == "data" and one.level == "refused"]
    with pytest.raises(BadDataset):  # the masks are garbage indeed
        prepare(config(tmp_path, spoilt, "all"))


def test_a_list_takes_file_names_and_refuses_images_that_are_not_there(tmp_path):
    root, listed = make_folder(tmp_path / "data"), tmp_path / "list.txt"
    listed.write_text("# by eye\ntile3.png\ntile5\n\n")
    cfg = config(tmp_path, root, labelled=str(listed))
    prepare(cfg)
    assert keys_of(open_prepared(cfg, "train").folder) == ["tile3", "tile5"]
    listed.write_text("tile3.png\ntile99.png\n")
    with pytest.raises(ValueError, match=r"names tile99.png; expected keys or file names"):
        prepare(config(tmp_path, root, "other", labelled=str(listed)))
    listed.write_text("\n")
    with pytest.raises(ValueError, match="names no image"):
        prepare(config(tmp_path, root, "other", labelled=str(listed)))
    with pytest.raises(ValueError, match="which cannot be read"):
        prepare(config(tmp_path, root, "other", labelled=str(tmp_path / "absent.txt")))
    with pytest.raises(ValueError, match="both choose the labelled images"):
        config(tmp_path, root, labelled=str(listed), num_labelled=2)


def test_a_list_is_known_by_its_names_and_by_its_copy_once_it_is_gone(tmp_path):
    root, listed = make_folder(tmp_path / "data"), tmp_path / "list.txt"
    listed.write_text("tile3\ntile5\n")
    cfg = config(tmp_path, root, labelled=str(listed))
    prepare(cfg)
    listed.write_bytes(b"\xef\xbb\xbf" + b"# chosen by eye\r\ntile5\r\ntile3\r\n")  # by another editor
    assert prepare(cfg).is_reused and len(open_prepared(cfg, "train")) == 2
    listed.unlink()
    assert prepare(cfg).is_reused and len(open_prepared(cfg, "train")) == 2
    assert not [one for one in check(cfg, 1) if one.topic == "data" and one.level == "refused"]
    with pytest.raises(ValueError, match="num_labelled: None then, 2 now"):
        prepare(config(tmp_path, root, num_labelled=2))


def test_a_check_chooses_without_a_look_at_the_masks(tmp_path, monkeypatch):
    cfg = config(tmp_path, make_folder(tmp_path / "data"), num_labelled=6)
    reads = Counter()
    monkeypatch.setattr(FolderDataset, "read", lambda self, entry: reads.update(["read"]))
    dataset = open_with_as_many(cfg.prepare, 0)
    assert len(dataset.entries("train")) == 6 and len(dataset.entries("unlabelled")) == 14 and not reads
    with pytest.raises(ValueError, match="num_labelled is 21, and 20 training images have labels"):
        open_with_as_many(cfg.prepare.model_copy(update={"num_labelled": 21}), 0)


def test_the_images_of_max_samples_are_the_same_for_every_number_of_labels(tmp_path):
    root, found = make_folder(tmp_path / "data"), []
    for number in (None, 2, 5):
        cfg = config(tmp_path, root, f"run{number}", max_samples=8, num_labelled=number)
        report = prepare(cfg).report
        rest = find_unlabelled(cfg)
        found.append({*keys_of(open_prepared(cfg, "train").folder), *(keys_of(rest.folder) if rest else ())})
        assert report["unread"] == []
    assert found[0] == found[1] == found[2] and len(found[0]) == 8


def test_a_prepared_set_with_other_labels_is_refused(tmp_path):
    root, listed = make_folder(tmp_path / "data"), tmp_path / "list.txt"
    cfg = config(tmp_path, root, num_labelled=6)
    prepare(cfg)
    for other in (config(tmp_path, root), config(tmp_path, root, num_labelled=7), config(tmp_path, root, seed=1,
                  num_labelled=6), config(tmp_path, root, num_labelled=6, on_missing_mask="image_only")):  # fmt: skip
        with pytest.raises(ValueError, match="was prepared with other settings"):
            open_prepared(other, "train")
        with pytest.raises(ValueError, match="was made with other settings"):
            prepare(other)
    same = config(tmp_path, root, seed=1, num_labelled=6, subset_seed=0)
    assert len(open_prepared(same, "train")) == 6 and prepare(same).is_reused
    whole = config(tmp_path, root, "whole")
    prepare(whole)
    with pytest.raises(ValueError, match="num_labelled: None then, 6 now"):
        open_prepared(config(tmp_path, root, "whole", num_labelled=6), "train")
    listed.write_text("tile1\n")
    by_list = config(tmp_path, root, "list", labelled=str(listed))
    prepare(by_list)
    listed.write_text("tile2\n")
    with pytest.raises(ValueError, match="was prepared with other settings"):
        open_prepared(by_list, "train")
    listed.unlink()  # the run has a copy
    assert keys_of(open_prepared(by_list, "train").folder) == ["tile1"]


def test_images_without_a_mask_serve_stage_1_where_the_settings_say_so(tmp_path, capsys):
    root = make_folder(tmp_path / "data")
    for i in range(5, 20):
        (root / "train" / "masks" / f"tile{i}.png").unlink()
    with pytest.raises(BadDataset, match=r"has 15 problem[\s\S]*prepare.on_missing_mask: image_only takes training"):
        prepare(config(tmp_path, root))
    cfg = config(tmp_path, root, on_missing_mask="image_only")
    report = prepare(cfg).report
    assert len(open_prepared(cfg, "train")) == 5 and len(find_unlabelled(cfg)) == 15 and report["skipped"] == []
    given = ["init", "mine", "--root", str(root), "--classes", "sea,oil", "--out", str(tmp_path / "mine.yaml")]
    assert main(given) == 1
    assert "--on-missing-mask image_only" in capsys.readouterr().err
    assert main([*given, "--on-missing-mask", "image_only"]) == 1  # 16 x 16 is too small for a student
    assert "the shortest side of the images is 16" in capsys.readouterr().err
    (root / "test" / "masks" / "tile0.png").unlink()
    with pytest.raises(BadDataset, match="has 1 problem"):
        prepare(config(tmp_path, root, "test", on_missing_mask="image_only"))


# --- the trainings ----------------------------------------------------------------------------------------------------


def test_stage_1_sees_all_images_and_the_later_stages_and_students_only_the_labelled(tmp_path):
    cfg = config(tmp_path, make_folder(tmp_path / "data"), num_labelled=6)
    prepare(cfg)
    first = training_of_stage(cfg, "stage1")
    assert first.dataset.epoch_length == 20
    seen = [first.dataset.batch([position]).keys[0] for position in range(20)]
    assert sorted(seen) == sorted(f"tile{i}" for i in range(20))
    assert first.dataset.batch([0, 1]).label is None
    first.folder.mkdir(parents=True)
    train_jointnet(cfg, (1,))
    assert training_of_stage(cfg, "stage2").dataset.epoch_length == 6


def test_the_teacher_is_the_same_whatever_the_masks_of_the_unlabelled_hold(tmp_path):
    """From the files of the masks to the weights of all stages, bit for bit; students read the shards of stage 2."""
    root = make_folder(tmp_path / "data")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"tile{i}\n" for i in range(4)))
    spoilt = Path(shutil.copytree(root, tmp_path / "spoilt"))
    spoil(spoilt / "train" / "masks", [f"tile{i}" for i in range(4)])
    weights = []
    for place in (root, spoilt):
        cfg = config(tmp_path, place, place.name, labelled=str(listed))
        prepare(cfg)
        train_jointnet(cfg)
        folder = tmp_path / place.name / "train_jointnet"
        weights.append([(folder / f"stage{stage}/weights_ema.safetensors").read_bytes() for stage in (1, 2, 3)])
    assert weights[0] == weights[1]
    kept = load_config(tmp_path / "spoilt" / "train_jointnet" / "stage1" / "config.yaml")
    assert kept.prepare.labelled == str(listed)
