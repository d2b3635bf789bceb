"""The prepared shards of a run, for the steps that use them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dakd.config import Config, DataConfig
from dakd.data.labelled import listed_names
from dakd.data.readers.base import UNLABELLED
from dakd.data.sample import ClassTable
from dakd.data.shards import ShardSet, open_split
from dakd.data.sources import default_cache

# The files may have moved, and how bad ones were met no longer matters.
_MAY_DIFFER = ("root", "on_bad_file")


# Settings that choose the labelled images; at their defaults they are left out, as they were before they existed.
_HASHED = "sha256 "  # before the hash of a list
_OF_CHOICE = {"num_labelled": None, "labelled": None, "on_missing_mask": "stop"}

HOW_TO_ADD_UNLABELLED = (
    "put them beside the labelled images (train/images) and set prepare.on_missing_mask to image_only, or set "
    "prepare.num_labelled; then prepare again"
)


def prepare_settings(cfg: Config) -> dict:
    """What decides the shards; the seed only where scenes are simulated, that of the choice only where there is one.

    A list of labelled images stands as the hash of its names; as its path where it is not there any more.
    """
    settings = cfg.prepare.model_dump(mode="json")
    settings = {name: value for name, value in settings.items() if _OF_CHOICE.get(name, ...) != value}
    del settings["radiometry"]  # it says what the greys mean, and changes none
    own_seed = settings.pop("subset_seed")
    if cfg.prepare.num_labelled is not None:
        settings["subset_seed"] = cfg.seed if own_seed is None else own_seed
    if cfg.prepare.labelled is not None and Path(cfg.prepare.labelled).is_file():
        names = "\n".join(listed_names(Path(cfg.prepare.labelled)))
        settings["labelled"] = f"{_HASHED}{hashlib.sha256(names.encode()).hexdigest()}"
    if settings["root"] is not None:  # strict readers of JSON take no byte that is not UTF-8
        settings["root"] = settings["root"].encode(errors="backslashreplace").decode()
    simulation = settings.pop("simulation")
    if cfg.prepare.dataset == "simulated":
        own_seed = simulation.pop("seed")
        settings |= {"simulation": simulation, "seed": cfg.seed if own_seed is None else own_seed}
    return settings


def with_kept_list(settings: dict, made_with: dict) -> dict:
    """The settings, with the list of labelled images of a prepared set where their own is gone: the set has a copy.

    settings: of `prepare_settings`.  made_with: those of the set.
    """
    found = settings.get("labelled")
    if found is None or found.startswith(_HASHED) or "labelled" not in made_with:
        return settings
    return settings | {"labelled": made_with["labelled"]}


def open_prepared(config: Config, split: str, run_dir: Path | None = None) -> ShardSet:
    """The run's shards of a split.  run_dir: None takes the configuration's.

    Raises ValueError where they are absent or were prepared with other settings.
    """
    shards = open_split((run_dir or config.run_path) / "prepare", split)
    made_with = shards.index.provenance.get("settings", {})
    wanted = with_kept_list(prepare_settings(config), made_with)
    names = [*made_with, *(name for name in _OF_CHOICE if name in wanted and name not in made_with and made_with)]
    differing = [
        f"prepare.{name}: {made_with.get(name)!r} then, {wanted.get(name)!r} now"
        for name in names
        if name not in _MAY_DIFFER and wanted.get(name) != made_with.get(name)
    ]
    if differing:
        raise ValueError(
            f"{shards.folder} was prepared with other settings ({'; '.join(differing)}); "
            "set them back, or take another name and prepare again"
        )
    return shards


def find_unlabelled(config: Config) -> ShardSet | None:
    """The training images whose labels are absent or not used, as images alone; None where there are none.

    ValueError where other settings prepared them.
    """
    is_there = (config.run_path / "prepare" / UNLABELLED / "index.json").is_file()
    return open_prepared(config, UNLABELLED) if is_there else None


def open_unlabelled(config: Config) -> ShardSet:
    """The run's images without labels.  ValueError where there are none, or other settings prepared them."""
    folder = config.run_path / "prepare" / UNLABELLED
    if not (folder / "index.json").is_file():
        raise ValueError(
            f"no images without labels in {folder}, which pseudo_label labels; {HOW_TO_ADD_UNLABELLED}"
        )
    return open_prepared(config, UNLABELLED)


def refuse_other_preparation(config: Config) -> None:
    """ValueError where a split of the run was prepared with other settings; a run without splits is fine."""
    for path in sorted((config.run_path / "prepare").glob("*/index.json")):
        open_prepared(config, path.parent.name)


def open_shards(
    place: str, cfg: DataConfig, classes: ClassTable | None = None, images_only: bool = False
) -> ShardSet:
    """A set of shards that a configuration names: a folder or a URL.  classes, images_only: see ShardSet."""
    return ShardSet(place, default_cache(cfg.cache, cfg.cache_gib), classes, images_only)


def reading_options(cfg: DataConfig) -> dict:
    """The settings of a dataset of `datasets` that all trainings share."""
    return {"window": cfg.window_shards, "on_bad_record": cfg.on_bad_record}
