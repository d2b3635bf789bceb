"""Cards of weights files, and of all final weights of a run: the fields that the hub reads, then the sections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from dakd.card import sections
from dakd.card.scores import find_scores, score_section
from dakd.card.subject import Subject, count_parameters, read_config, refuse_unknown
from dakd.runtime.files import file_hash, replacing
from dakd.runtime.sealed import refuse_unlisted
from dakd.runtime.tensor_files import read_metadata
from dakd.weights import STUDENT_FILES

CARD_FILE = "README.md"
MARKER = "<!-- Written by dakd, which replaces this file; delete this line to keep changes of your own. -->"
TEACHER_FILE = "weights_ema.safetensors"
# Licences that the hub knows by these identifiers; any other one is `other` with a name.
HUB_LICENCES = {
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "gpl", "gpl-2.0", "gpl-3.0", "lgpl",
    "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "eupl-1.1", "eupl-1.2", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "openrail", "openrail++", "odbl",
    "odc-by", "unlicense", "unknown",
}  # fmt: skip
DATASET_NAMES = {
    "simulated": "Simulated SAR images of dakd",
    "osd": "Oil Spill Detection Dataset",
    "sos": "Deep-SAR Oil Spill",
    "folder": "Private images",
}


def write_cards(run: str | Path, *, licence: str | None = None) -> list[Path]:
    """Writes README.md next to each set of final weights of a run folder; returns the paths.

    Final weights are those of each student (train_saross/TRAINING_SET/) and of the teacher's last training. No card is
    written before the text of all of them is made; a second call replaces them.
    licence: of the weights: an identifier of the hub such as `cc-by-4.0`, another name, or a URL; None: not stated.
    Raises ValueError if `run` is not a run folder or has no final weights, and if a README.md there is not dakd's.
    """
    run = Path(run)
    cards = {weights.parent / CARD_FILE: weights for weights in final_weights(run)}
    for path in cards:
        refuse_foreign(path)
    texts = {path: card_text(weights, run=run, licence=licence) for path, weights in cards.items()}
    for path, text in texts.items():
        write_card(path, text)
    return list(texts)


def card_text(weights: Path, *, run: Path | None = None, licence: str | None = None) -> str:
    """The card of one weights file, from its metadata and, with `run`, from the run's configuration, data and scores.

    Raises FileNotFoundError or ValueError if there are no weights of a student or a teacher, or no folder of a run, and
    with `run` where they are not the weights that the training wrote there.
    """
    weights = Path(weights)
    metadata = read_metadata(weights)
    with safe_open(str(weights), framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    facts: dict[str, Any] = {}
    if run is not None:
        refuse_unlisted(weights)
        config = read_config(Path(run), weights.parent)
        is_evaluated = (Path(run) / "evaluate").is_dir()
        facts = {"run": Path(run), "folder": weights.parent, "config": config}
        facts["sha256"] = file_hash(weights) if is_evaluated else None
    refuse_unknown(metadata, str(weights))
    return _render(Subject(metadata, count_parameters(shapes), weights.name, licence or None, **facts))


def card_of(
    metadata: dict[str, Any],
    num_parameters: int,
    *,
    file: str = "model.safetensors",
    licence: str | None = None,
) -> str:
    """The card of a model in memory, whose weights will lie in `file`; see `card_text`.

    Raises ValueError where the metadata are neither of a student nor of a teacher.
    """
    refuse_unknown(metadata, file)
    return _render(Subject(metadata, num_parameters, file, licence or None))


def final_weights(run: Path) -> list[Path]:
    """The averaged weights of the teacher's last training and of each student; ValueError where there are none."""
    config = read_config(run)
    teacher = run / "train_jointnet" / config.train_jointnet.stages[-1] / TEACHER_FILE
    students = sorted(run.glob(f"train_saross/*/{STUDENT_FILES['ema']}"))
    found = [path for path in (teacher, *students) if path.is_file()]
    if not found:
        raise ValueError(
            f"{run} has no final weights, neither {teacher.relative_to(run)} nor "
            f"train_saross/*/{STUDENT_FILES['ema']}; finish dakd train_jointnet or dakd train_saross first"
        )
    return found


def write_card(path: Path, text: str) -> None:
    """Writes a card whole or not at all; ValueError where the file that is there is not dakd's."""
    refuse_foreign(path)
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def refuse_foreign(path: Path) -> None:
    """ValueError where `path` is a file that dakd has not written."""
    if is_foreign(path):
        raise ValueError(f"{path} was not written by dakd, and is not replaced; move it away and write the card again")


def is_foreign(path: Path) -> bool:
    """Whether there is a file without dakd's marker line."""
    return path.is_file() and MARKER not in path.read_text(encoding="utf-8", errors="replace")


def _render(model: Subject) -> str:
    try:
        scores = find_scores(model)
        front = yaml.safe_dump(_front_matter(model, scores), sort_keys=False, allow_unicode=True, width=120)
        body = [sections.heading(model)]
        body += [f"## {title}\n\n{text}" for title, text in _sections(model, scores).items()]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the metadata of {model.file}, or the run's files on it, are of another version or damaged; write them "
            f"again: {error!r:.300}"
        ) from error
    return f"---\n{front}---\n\n{MARKER}\n\n" + "\n\n".join(body) + "\n"


def _sections(model: Subject, scores: dict | str) -> dict[str, str]:
    return {
        "Use": sections.use(model),
        "Classes": sections.class_table(model),
        "Training data": sections.training_data(model),
        "Training": sections.training(model),
        "Scores": "\n\n".join(score_section(model, scores)),
        "Limits": sections.limits(model),
        "Licence": sections.licence_section(model),
        "Citation": sections.citation(),
        "Settings": sections.settings(model),
    }


def _front_matter(model: Subject, scores: dict | str) -> dict:
    """The hub's fields.  scores: the evaluation, or a sentence that says why there is none."""
    if model.is_student:
        task, kinds = "image-segmentation", ["semantic-segmentation", "knowledge-distillation"]
    else:
        task, kinds = "unconditional-image-generation", ["diffusion", "data-augmentation"]
    front = _front_licence(model.licence) | {
        "library_name": "dakd",
        "pipeline_tag": task,
        "tags": ["dakd", "sar", "oil-spill", "remote-sensing", *kinds, "arxiv:2412.08116"],
    }
    metrics = [] if isinstance(scores, str) else _metrics(model, scores)
    if metrics:
        data = {"type": model.dataset, "name": DATASET_NAMES[model.dataset], "split": scores.get("split", "train")}
        result = {"task": {"type": task}, "dataset": data, "metrics": metrics}
        front["model-index"] = [{"name": _name(model), "results": [result]}]
    return front


def _front_licence(licence: str | None) -> dict[str, str]:
    """The hub's fields: one of its identifiers, or `other` with a name and perhaps a link."""
    if licence is None:
        return {"license": "unknown"}
    identifier = "-".join(licence.lower().split())
    if identifier in HUB_LICENCES:
        return {"license": identifier}
    if re.fullmatch(r"https?://\S+", licence):
        return {"license": "other", "license_name": "custom", "license_link": licence}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.") or "custom"}


def _metrics(model: Subject, scores: dict) -> list[dict]:
    """Fractions for a student, FID and its relatives for a teacher, as the hub's index of results has them."""
    if not model.is_student:
        measured = scores.get("fidelity", {}).get("metrics", {})
        return [{"type": name, "name": one["title"], "value": one["value"]} for name, one in measured.items()]
    names = {"miou": ("mean_iou", "mIoU"), "f1": ("f1", "mean F1"), "pixel_accuracy": ("accuracy", "pixel accuracy")}
    return [{"type": kind, "name": title, "value": round(scores[field], 4)} for field, (kind, title) in names.items()]


def _name(model: Subject) -> str:
    training_set = model.metadata.get("training_set")
    return f"{model.title} ({training_set})" if training_set else model.title
