"""The report of a run: one HTML page that holds everything it shows and opens without a network.

It reads the run folder alone (tables, curves, pictures), loads no model, and says which step writes what is absent.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from dakd.data.prepare import describe
from dakd.evaluate import html, report_scores, report_training
from dakd.evaluate.gallery import GROUPS
from dakd.evaluate.generation import statistics_rows
from dakd.evaluate.likeness import fidelity_section
from dakd.evaluate.report_parts import legend, read_json
from dakd.evaluate.svg import COLOURS, Line, line_chart
from dakd.runtime.files import write_text

_NUM_PREDICTIONS = 8
_WIDE = 200  # pixels; larger images get a row of their own


def write_report(run_dir: str | Path) -> Path:
    """Write run_dir/report/index.html from whatever the run folder holds; returns its path.

    Raises ValueError where there is no run folder.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"no run folder at {run_dir}; run the steps first")
    title = f"dakd: {_run_name(run_dir)}"
    sections = {
        "results": ("Results on held-out images", report_scores.results),
        "predictions": ("Predictions", _predictions),
        "synthetic": ("Synthetic pairs", _synthetic),
        "teacher": ("Training of the teacher", report_training.teacher),
        "students": ("Training of the students", report_training.students),
        "data": ("Data", _data),
        "settings": ("Settings", _settings),
    }
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, (name, _) in sections.items())
    body = [
        html.heading(title, "Data augmentation and distillation for oil spills in SAR images"),
        f"<nav>{links}</nav>",
    ]
    body += [html.section(anchor, name, *build(run_dir)) for anchor, (name, build) in sections.items()]
    path = run_dir / "report" / "index.html"
    write_text(path, html.page(title, "\n".join(body)))
    return path


# --- sections ---------------------------------------------------------------------------------------------------------


def _predictions(run_dir: Path) -> list[str]:
    folder = run_dir / "evaluate" / "pictures"
    index = read_json(folder / "index.json")
    if index is None or not index["images"]:
        return [html.missing("Pictures of predictions", "evaluate"), *_predicted_files(run_dir)]
    note = "Image, truth and each student's prediction with the mIoU of this image."
    parts = [html.paragraph(note), legend(index["classes"])]
    titles = {"held-out": "Held-out images", "best": "Best images of the last student", "worst": "Its worst images"}
    for group in GROUPS:
        images = [image for image in index["images"] if image["group"] == group]
        if images:
            is_wide = any(max(image["size"]) > _WIDE for image in images)
            strips = [_strip(folder, image) for image in images]
            parts += [html.subheading(titles[group]), html.gallery(strips, is_wide)]
    return parts + _predicted_files(run_dir)


def _predicted_files(run_dir: Path) -> list[str]:
    """What the last call of predict wrote, of each student that was asked."""
    parts = []
    for path in sorted((run_dir / "predict").glob("*/predict.json")):
        record = read_json(path)
        overlays = [path.with_name(f"{name}_overlay.png") for name in record["images"][:_NUM_PREDICTIONS]]
        captioned = [
            html.figure(overlay, overlay.name.removesuffix("_overlay.png")) for overlay in overlays if overlay.is_file()
        ]
        if captioned:
            student = f"the student trained on {record['training_set']} (sha256 {record['student_sha256'][:12]})"
            note = f"By {student}, of {record['inputs']}: {len(captioned)} of {len(record['images'])} images."
            parts += [html.paragraph(note), html.strip(captioned)]
    if not parts:
        return [html.missing("Overlays of predicted images", "predict")]
    return [html.subheading("Predicted classes on the image"), *parts]


def _synthetic(run_dir: Path) -> list[str]:
    parts = []
    statistics = read_json(run_dir / "evaluate" / "generation.json")
    if statistics is None:
        parts.append(html.missing("Statistics of the synthetic set", "evaluate (after generate)"))
    else:
        parts += _statistics(statistics)
    sheet = run_dir / "generate" / "contact_sheet.png"
    if sheet.is_file():
        parts += [
            html.subheading("Pairs from the teacher"),
            html.figure(sheet, "image left, label right", magnify=True),
        ]
    else:
        parts.append(html.missing("Contact sheet of the synthetic set", "generate"))
    return parts + _overlays(run_dir)


def _statistics(statistics: dict) -> list[str]:
    real, synthetic = statistics["real"], statistics["synthetic"]
    parts = [html.paragraph("Do the synthetic labels have the right shares, and their classes the right greys?")]
    agreed = statistics["agreement"]
    if agreed is not None:
        parts.append(
            html.cards([(f"{100 * agreed['miou']:.1f} %", "mIoU of the real-only student with the teacher's labels")])
        )
    else:
        parts.append(
            html.paragraph("Agreement with the teacher's labels: no student was trained on real pairs alone.", "note")
        )
    parts.append(html.table(*statistics_rows(real, synthetic)))
    parts += fidelity_section(statistics)
    drawings = [
        _grey_chart(name, real["grey_histogram"][index], synthetic["grey_histogram"][index])
        for index, name in enumerate(real["shares"])
        if sum(real["grey_histogram"][index]) or sum(synthetic["grey_histogram"][index])
    ]
    return [*parts, html.subheading("Grey values by class"), html.charts(drawings)]


def _overlays(run_dir: Path) -> list[str]:
    folder = run_dir / "evaluate" / "pictures"
    index = read_json(folder / "index.json")
    parts = []
    for name, pairs in (index["overlays"] if index else {}).items():
        tiles = [[html.picture(folder / file) for file in pair["files"].values()] for pair in pairs]
        parts += [html.subheading(f"Labels on their images: {name}"), html.pairs(tiles)]
    return [*parts, legend(index["classes"])] if parts else []


def _data(run_dir: Path) -> list[str]:
    parts = [*_shard_sheet(run_dir), *_balance(run_dir)]
    index = read_json(run_dir / "prepare" / "train" / "index.json")
    sheet = run_dir / "prepare" / "contact_sheet.png"
    if sheet.is_file():
        parts.append(html.figure(sheet, "real training pairs: image left, label right", magnify=True))
        parts += [legend(index["classes"])] if index else []
    else:
        parts.append(html.missing("Contact sheet of the training set", "prepare"))
    return parts


def _shard_sheet(run_dir: Path) -> list[str]:
    folders = {"train": "prepare/train", "test": "prepare/test", "synthetic": "generate"}
    found = {name: read_json(run_dir / folder / "index.json") for name, folder in folders.items()}
    found = {name: index for name, index in found.items() if index is not None}
    if not found:
        return [html.missing("Data sheet", "prepare")]
    classes = next(iter(found.values()))["classes"]["names"]
    rows = []
    for name, index in found.items():
        sizes = ", ".join(f"{size} ({count})" for size, count in index["sizes"].items())
        shares = [100 * share for share in index["class_pixel_shares"]]
        rows.append([name, index["num_samples"], sizes, *shares, index["fingerprint"][:12]])
    header = ["set", "images", "height x width", *(f"{name}, %" for name in classes), "fingerprint"]
    report = read_json(run_dir / "prepare" / "report.json")
    # The table says the rest; what was repaired or left out must not be missed.
    notes = describe(report)[len(report["splits"]) :] if report is not None else []
    return [html.table(header, rows), *(html.paragraph(note, "note") for note in notes)]


def _balance(run_dir: Path) -> list[str]:
    facts = read_json(run_dir / "balance" / "balance.json")
    if facts is None:
        return [html.missing("Balancing factor b", "balance")]
    numbers = [[name, f"{value:.6g}" if isinstance(value, float) else str(value)] for name, value in facts.items()]
    return [html.subheading("Balancing factor of the mask's noisy input"), html.table(["quantity", "value"], numbers)]


def _settings(run_dir: Path) -> list[str]:
    path = run_dir / "config.yaml"
    if not path.is_file():
        return [html.missing("config.yaml", "train_jointnet")]
    return [html.folded("config.yaml, all settings resolved", path.read_text())]


# --- pieces -----------------------------------------------------------------------------------------------------------


def _grey_chart(name: str, real: list[int], synthetic: list[int]) -> str:
    lines = []
    for set_name, counts, colour, dashed in (
        ("real", real, COLOURS[0], False),
        ("synthetic", synthetic, COLOURS[1], True),
    ):
        total = sum(counts)
        if total:
            # Bins of four greys: rare classes would show as a comb.
            bins = [100 * sum(counts[grey : grey + 4]) / total for grey in range(0, len(counts), 4)]
            lines.append(Line(set_name, [grey + 1.5 for grey in range(0, len(counts), 4)], bins, colour, dashed))
    return line_chart(lines, f"grey value of {name}", "% of its pixels")


def _strip(folder: Path, image: dict) -> str:
    figures = []
    for name, file in image["files"].items():
        miou = image["miou"].get(name)
        caption = name if miou is None else f"{name}: {100 * miou:.1f} %"
        figures.append(html.figure(folder / file, image["key"] if name == "image" else caption))
    return html.strip(figures)


def _run_name(run_dir: Path) -> str:
    table = run_dir / "config.yaml"
    if table.is_file():
        return yaml.safe_load(table.read_text()).get("name", run_dir.name)
    return run_dir.name
