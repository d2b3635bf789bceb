"""The files of the memorisation audit: audit.json for programs, audit.txt and nearest.png for people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dakd.data.pictures import contact_sheet
from dakd.data.sample import Sample
from dakd.data.shards import ShardSet
from dakd.data.transforms import pad
from dakd.evaluate.neighbours import FLIP_NAMES, FLIPS, MEASURES, Neighbours, Window
from dakd.metrics.tables import format_table
from dakd.runtime.files import replacing, write_text
from dakd.runtime.sealed import files_of, remove_manifest, write_json, write_manifest

NUM_PICTURES = 12  # of the most suspicious pairs
_SIDE = 160  # pixels; smaller images are magnified to about this side in the picture
_MIN_LIMIT = 1e-9
_QUANTILES = (0, 1, 5, 50)  # percent


def write_audit(
    folder: Path,
    facts: dict,
    synthetic: ShardSet,
    train: ShardSet,
    kept: list[int],
    found: dict[str, dict[str, Neighbours]],
    limits: dict[str, float],
) -> str:
    """Write the three files and their manifest; the text.

    facts: what was compared, and how.  kept: places of the synthetic images that were looked up.  found: by the name of
    the set, "synthetic" among them, and by measure.  limits: by measure, the distance below which an image is
    suspicious.
    """
    ours = found["synthetic"]
    suspects = _most_suspicious(ours, limits, NUM_PICTURES)
    content = facts | {
        "synthetic_fingerprint": synthetic.fingerprint,
        "training_fingerprint": train.fingerprint,
        "limits": limits,
        "sets": {name: _summary(one, limits) for name, one in found.items()},
        "suspects": [[synthetic.key(kept[at]), one] for at, one in suspects],
        "pairs": [_pair(synthetic, train, kept, ours, at, limits) for at in range(len(kept))],
    }
    text = _format(content)
    remove_manifest(folder)
    write_json(folder / "audit.json", content)
    write_text(folder / "audit.txt", text + "\n")
    _draw(synthetic, train, kept, ours, suspects, facts["window"], folder / "nearest.png")
    write_manifest(folder, files_of(folder))
    return text


def _summary(found: dict[str, Neighbours], limits: dict[str, float]) -> dict:
    """By measure: quantiles of the distances, and the share of them below the limit."""
    return {
        one: {
            "num": len(near.distances),
            "quantiles": {f"{q}": float(np.percentile(near.distances, q)) for q in _QUANTILES},
            "share_below_limit": float(np.mean(near.distances < limits[one])),
        }
        for one, near in found.items()
    }


def _most_suspicious(found: dict[str, Neighbours], limits: dict[str, float], count: int) -> list[tuple[int, str]]:
    """(place, measure) of the samples that lie nearest, in units of the measures' limits."""
    nearness = np.stack([found[one].distances / max(limits[one], _MIN_LIMIT) for one in MEASURES])
    order = np.argsort(nearness.min(axis=0), kind="stable")[:count]
    return [(int(at), MEASURES[int(nearness[:, at].argmin())]) for at in order]


def _pair(
    synthetic: ShardSet,
    train: ShardSet,
    kept: list[int],
    found: dict[str, Neighbours],
    at: int,
    limits: dict[str, float],
) -> dict:
    pair: dict = {"key": synthetic.key(kept[at])}
    for one in MEASURES:
        window, distance = found[one].windows[at], float(found[one].distances[at])
        pair[one] = {
            "training": train.key(window.image),
            "top_left": [window.top, window.left],
            "mirrored": FLIP_NAMES[int(found[one].flips[at])],
            "distance": round(distance, 6),
            "below_limit": distance < limits[one],
        }
    return pair


def _format(content: dict) -> str:
    percentile, yardstick, limits = content["percentile"], content["yardstick"], content["limits"]
    lines = [
        f"Distances to the nearest training window of {_times(content['window'])} pixels, over mirrored copies.",
        f"features: {content['extractor']}, standardised, Euclidean. blocks, grain: 1 - correlation of means of "
        f"{_times(content['block'])} and of {_times(content['grain'])} pixels.",
        f"limit: {percentile:g} % of the distances of the set '{yardstick}' lie below it.",
        "",
    ]
    header = ["set", "measure", "windows", *("least" if q == 0 else f"{q} %" for q in _QUANTILES), "limit", "below, %"]
    rows = [
        [name, one, facts["num"], *(f"{value:.4g}" for value in facts["quantiles"].values()),
         f"{limits[one]:.4g}", 100 * facts["share_below_limit"]]
        for name, measures in content["sets"].items()
        for one, facts in measures.items()
    ]  # fmt: skip
    lines.append(format_table(header, rows))
    lines += ["", "the nearest pairs, in units of the limits (in nearest.png: synthetic left, training right):"]
    pairs = {pair["key"]: pair for pair in content["pairs"]}
    header = ["synthetic", "by", "distance", "of limit", "training", "top, left", "mirrored"]
    lines.append(format_table(header, [_suspect_row(pairs[key], one, limits) for key, one in content["suspects"]]))
    if all(content["enl"].values()):
        lines += ["", "equivalent number of looks, as the gate measures it:"]
        header = ["set", *(f"{q} %" for q in content["enl"]["training"])]
        lines.append(format_table(header, [[name, *values.values()] for name, values in content["enl"].items()]))
    return "\n".join(lines)


def _suspect_row(pair: dict, one: str, limits: dict[str, float]) -> list[str | float]:
    found = pair[one]
    place = ", ".join(map(str, found["top_left"]))
    ratio = found["distance"] / max(limits[one], _MIN_LIMIT)
    return [pair["key"], one, f"{found['distance']:.4g}", ratio, found["training"], place, found["mirrored"]]


def _times(size: list[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _draw(
    synthetic: ShardSet,
    train: ShardSet,
    kept: list[int],
    found: dict[str, Neighbours],
    suspects: list[tuple[int, str]],
    size: list[int],
    path: Path,
) -> None:
    """Each suspect with its label; to its right its training window, mirrored as the match was, with its label."""
    pairs = []
    for at, one in suspects:
        window, flip = found[one].windows[at], FLIPS[int(found[one].flips[at])]
        pairs += [synthetic.read(kept[at]), _cut(train.read(window.image), window, size, flip)]
    scale = max(1, _SIDE // size[0])
    with replacing(path) as aside:
        contact_sheet(pairs, train.classes, columns=2, scale=scale).save(aside, format="PNG")


def _cut(sample: Sample, window: Window, size: list[int], flip: tuple[int, ...]) -> Sample:
    sample = pad(sample, (size[0], size[1]))

    def cut(array: np.ndarray | None) -> np.ndarray | None:
        if array is None:
            return None
        part = array[window.top : window.top + size[0], window.left : window.left + size[1]]
        return np.flip(part, [axis - 1 for axis in flip])  # FLIPS count the axes of (B, H, W)

    return replace(sample, sar=cut(sample.sar), label=cut(sample.label), soft_label=None)
