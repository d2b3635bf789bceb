"""The front matter of a card: the fields that the hub reads."""

from __future__ import annotations

import re

from dakd.card.subject import Subject

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


def front_matter(model: Subject, scores: dict | str) -> dict:
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
