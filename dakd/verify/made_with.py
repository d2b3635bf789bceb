"""The settings with which `evaluate` and `predict` made the files of a folder, by what its files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dakd.config import Config
from dakd.predict.record import RECORD_FILE
from dakd.runtime.sealed import parse_sealed
from dakd.verify.found import ERRORS
from dakd.weights import STUDENT_FILES

Settings = dict[str, Any]  # by dotted key


def evaluation_settings(run: Path, folder: Path) -> Settings | None:
    """The settings of an evaluation; None where no file can say which images or student another one than RUN's had.

    folder: of its tables, RUN/evaluate or one below it.
    """
    facts = next((found for path in sorted(folder.glob("*.json")) if (found := _readable(path, "inputs"))), None)
    if facts is None:
        if folder == run / "evaluate":
            return {}
        return {"evaluate.split": "train"} if folder == run / "evaluate" / "train" else None
    inputs = facts["inputs"] or {}
    settings = {
        "evaluate.folder": inputs.get("folder"),
        "evaluate.student": inputs.get("student"),
        "evaluate.split": inputs.get("split", facts["split"]),
        "evaluate.scales": facts["scales"],
    }
    if inputs.get("student") is None:
        settings["evaluate.weights"] = facts["weights"]
    if inputs.get("folder") is not None:
        settings |= {
            "evaluate.dataset": inputs.get("dataset", "auto"),
            "prepare.resize": inputs.get("resize"),
            "prepare.mask_values": inputs.get("mask_values", "auto"),
            "prepare.polarity": inputs.get("polarity", "oil_is_white"),
            "prepare.mask_threshold": inputs.get("mask_threshold", 128),
        }
        if "sensor" in inputs:
            settings["prepare.sensor"] = inputs["sensor"]
        if facts["skipped"]:
            settings["prepare.on_bad_file"] = "skip"
    return settings


def prediction_settings(folder: Path, name: str) -> Settings:
    """The settings of the predictions in RUN/predict/TRAINING_SET.

    name: of the file to make again: that of the record stands for all of the last call, any other for its image.
    """
    settings: Settings = {"predict.training_set": folder.name}
    record = _readable(folder / RECORD_FILE, "sources")
    if record is None:
        return settings
    kinds = {file: kind for kind, file in STUDENT_FILES.items()}
    settings["evaluate.weights"] = kinds.get(Path(record["student"]).name, "ema")
    settings["evaluate.scales"] = record["scales"]
    of_files = {one: where for one, where in record["sources"].items() if Path(where).is_absolute()}
    image = next((one for one in record["sources"] for ending in record["endings"] if name == one + ending), None)
    inputs = of_files.get(image) if image is not None else record["inputs"] if of_files else None
    is_of_test_split = inputs is None or Path(inputs).parts[-2:] == ("prepare", "test")
    settings["predict.inputs"] = None if is_of_test_split else inputs
    if is_of_test_split and len(record["sources"]) > len(of_files):
        settings["predict.num_images"] = len(record["sources"]) - len(of_files)
    return settings


def as_overrides(settings: Settings, config: Config) -> list[str]:
    """The settings that differ from those of a configuration, as they are typed."""
    found = config.model_dump(mode="json")
    overrides = []
    for key, value in settings.items():
        section, name = key.split(".")
        if found[section][name] != value:
            overrides.append(f"{key}={'null' if value is None else value}")
    return overrides


def _readable(path: Path, key: str) -> dict | None:
    """The content of a file that is as written, by its own checksum: the manifest may be what is damaged."""
    try:
        found = parse_sealed(path.read_bytes(), path)
    except ERRORS:
        return None
    return found if isinstance(found, dict) and key in found else None
