"""Draws a folder of results as bars: one panel an op against its floor, and panels of generation and training.

    python benchmarks/plot_results.py benchmarks/results/nvidia-h200        # writes results/pictures/nvidia-h200.png

A bar is the time of one contestant; the line is the floor, the op's least bytes over the copy bandwidth of the same
run; generation and training have none. It shows the largest shape of each op from its newest run; --shape chooses
another. Rivals and the reference are grey.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lib.device import RESULTS
from lib.table import RIVALS, read_rows

_OURS, _FLOOR = "#2a6f97", "#c1121f"
_GREY, _GREYS = "#c8c8c8", {"eager": "#8c8c8c", "compile": "#a8a8a8"}
_TITLES = {
    "transposed_attention": "transposed attention",
    "ddim_step": "DDIM step",
    "joint_noising": "joint noising",
    "seg_loss": "segmentation loss",
    "selective_scan": "selective scan",
    "depthwise_conv1d": "depthwise conv1d",
    "generate": "64 pairs",
    "train": "training step",
}
_WITHOUT_FLOOR = {"generate": "diffusers", "train": "ddp"}  # whose time is `times_eager`'s
_MAX_COLUMNS = 2
_UNITS = ((1e7, 1e-6, "s"), (1e3, 1e-3, "ms"), (0.0, 1.0, "µs"))  # from how many microseconds on, scale, unit


def newest(rows: list[dict[str, str]]) -> dict[tuple[str, str], list[dict[str, str]]]:
    """The rows of each (op, what) at its largest shape: the newest of each contestant, the fastest last."""
    chosen = {}
    timed = [row for row in rows if row["op"] in _TITLES and row["contestant"] != "copy"
             and (row.get("least_mb") or row["op"] in _WITHOUT_FLOOR)]  # fmt: skip
    for key in dict.fromkeys((row["op"], row["what"]) for row in timed):
        group = [row for row in timed if (row["op"], row["what"]) == key]
        largest = max(group, key=lambda row: float(row["least_mb"] or row["time_us"]))
        # Whole steps run in the layout that each side takes.
        alike = ("shape", "dtype") if key[0] in _WITHOUT_FLOOR else ("shape", "dtype", "layout")
        same = [row for row in group if all(row.get(name) == largest.get(name) for name in alike)]
        by_contestant = {row["contestant"]: row for row in sorted(same, key=lambda row: row["date"])}
        chosen[key] = sorted(by_contestant.values(), key=lambda row: -float(row["time_us"]))
    return dict(sorted(chosen.items(), key=lambda item: (list(_TITLES).index(item[0][0]), item[0][1])))


def floor_us(row: dict[str, str]) -> float:
    return float(row["least_mb"]) / float(row["copy_gb_s"]) * 1e3


def draw(groups: dict[tuple[str, str], list[dict[str, str]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(_MAX_COLUMNS, len(groups))
    num_rows = -(-len(groups) // columns)
    heights = [
        max(len(group) for group in list(groups.values())[start : start + columns]) + 1.6
        for start in range(0, len(groups), columns)
    ]
    figure, panels = plt.subplots(num_rows, columns, figsize=(6.2 * columns, 0.30 * sum(heights) + 1.0), squeeze=False,
                                  gridspec_kw=dict(height_ratios=heights))  # fmt: skip
    for panel, ((op, what), group) in zip(panels.flat, groups.items()):
        _draw_panel(panel, op, what, group)
    for panel in panels.flat[len(groups) :]:
        panel.axis("off")
    any_row = next(iter(groups.values()))[0]
    versions = f"torch {any_row['torch']}" + (f", triton {any_row['triton']}" if any_row["triton"] else "")
    figure.suptitle(f"{any_row['device']}   ({versions}, commit {any_row['commit']})", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_panel(panel, op: str, what: str, group: list[dict[str, str]]) -> None:
    times = [float(row["time_us"]) for row in group]
    scale, unit = next((scale, unit) for least, scale, unit in _UNITS if max(times) >= least)
    names = [row["contestant"] for row in group]
    colours = [_GREYS.get(name, _GREY) if name in RIVALS else _OURS for name in names]
    panel.barh(names, [time * scale for time in times], color=colours, height=0.72)
    if op not in _WITHOUT_FLOOR:
        floor = floor_us(group[0]) * scale
        panel.axvline(floor, color=_FLOOR, linewidth=1.2)
        panel.set_title(f"floor {floor:.3g} {unit}", fontsize=8, loc="right", color=_FLOOR)
    for index, (row, time) in enumerate(zip(group, times)):
        label = f" {time * scale:.3g}"
        if row["times_eager"] and float(row["times_eager"]) != 1:
            label += f"  ({float(row['times_eager']):.3g}x {_WITHOUT_FLOOR.get(op, 'eager')})"
        panel.text(time * scale, index, label, va="center", fontsize=7.5)
    panel.set_xlim(0, max(times) * scale * 1.35)
    panel.set_title(f"{_TITLES[op]}, {what}   {_shape(group[0])}", fontsize=8.5, loc="left")
    panel.set_xlabel(unit, fontsize=7.5, labelpad=1)
    panel.tick_params(labelsize=7.5)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _shape(row: dict[str, str]) -> str:
    """A shape's name, or its numbers without their names."""
    if "=" not in row["shape"]:
        return f"{row['shape']}, {row['dtype']}"
    parts = [part.partition("=")[2] or part for part in row["shape"].split(",")]
    return f"{' x '.join(parts)}, {row['dtype']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder of CSV files, such as benchmarks/results/nvidia-h200")
    parser.add_argument("--shape", help="only rows of this shape, as the files name it")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/pictures/<name of the folder>.png")
    options = parser.parse_args()
    rows = [row for row in read_rows(options.folder) if options.shape in (None, row["shape"])]
    groups = newest(rows)
    if not groups:
        print(f"{options.folder} holds no rows of an op; measure first (make gpu-run)", file=sys.stderr)
        return 2
    path = options.out or RESULTS / "pictures" / f"{options.folder.name}.png"
    draw(groups, path)
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
