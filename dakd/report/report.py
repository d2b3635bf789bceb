"""The report of a run: one HTML page that holds everything it shows and opens without a network.

It reads the files of the run folder (tables, curves, pictures) and loads no model. A part that is absent is named, with
the step that writes it. The modules of this folder gather numbers, charts and pictures; page.html has the words.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from dakd.config import read_yaml
from dakd.data.prepare import notes
from dakd.data.readers.base import UNLABELLED
from dakd.data.sample import ClassTable
from dakd.evaluate.earlier import earlier_predictions, earlier_scores
from dakd.evaluate.pairs import fidelity_notes, fidelity_rows, physics_note, physics_rows, statistics_rows
from dakd.metrics.tables import format_cell
from dakd.report import pictures
from dakd.report.charts import COLOURS, Line, line_chart
from dakd.report.scores import other_evaluations, results
from dakd.report.training import student_trainings, teacher_trainings
from dakd.runtime.files import write_text
from dakd.runtime.kept_config import CONFIG, refuse_changed_config
from dakd.runtime.runlog import say
from dakd.runtime.sealed import read_json, remove_manifest, write_manifest

SECTIONS = {
    "results": "Results on held-out images",
    "predictions": "Predictions",
    "synthetic": "Synthetic pairs",
    "teacher": "Training of the teacher",
    "students": "Training of the students",
    "data": "Data",
    "settings": "Settings",
}
_QUICKLOOK = ".quicklook.png"
_NUM_PREDICTIONS = 8
_WIDE = 200  # pixels; larger images get a row of their own


_RESULTS = ("config.yaml", "prepare", "balance", "train_jointnet", "generate", "refine", "pseudo_label", "train_saross",
            "evaluate", "predict")  # fmt: skip


def write_report(run_dir: str | Path) -> Path:
    """Write run_dir/report/index.html from the files of the run folder; returns its path.

    Scores and predictions of a student that was trained again since are shown with a line that says so, also printed.
    Raises ValueError where there is no run folder, and for a folder without a result of any step.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"no run folder at {run_dir}; run the steps first")
    if not any((run_dir / name).exists() for name in _RESULTS):
        raise ValueError(f"{run_dir} is not a run folder: found none of {', '.join(_RESULTS)}; give runs/NAME")
    try:
        earlier = _earlier(run_dir)
        text = _page(run_dir, earlier)
    except (TypeError, AttributeError, LookupError, ArithmeticError, TemplateError) as error:
        if isinstance(error, ValueError):  # it names a file
            raise
        raise ValueError(
            f"a file of results in {run_dir} is not one that this version writes ({type(error).__name__}: {error}); "
            "run the steps again that wrote them: dakd evaluate first"
        ) from None
    path = run_dir / "report" / "index.html"
    remove_manifest(path.parent)
    write_text(path, text)
    write_manifest(path.parent, [path])
    for line in [line for lines in earlier.values() for line in lines]:
        say(f"report: {line}")
    return path


def _earlier(run_dir: Path) -> dict[str, list[str]]:
    """By folder of an evaluation or of predictions, what it says of students that were trained again since."""
    folders = [run_dir / "evaluate", *sorted(path.parent for path in (run_dir / "evaluate").glob("*/table.json"))]
    found = {str(folder): earlier_scores(folder, run_dir) for folder in folders}
    for path in sorted((run_dir / "predict").glob("*/predict.json")):
        record = read_json(path)
        if "training_set" in record:  # `dakd predict --student` was given the others
            found[str(path.parent)] = earlier_predictions(record, run_dir)
    return found


def _page(run_dir: Path, earlier: dict[str, list[str]]) -> str:
    """earlier: of `_earlier`."""
    config = run_dir / CONFIG
    refuse_changed_config(config)
    settings = config.read_text(errors="replace") if config.is_file() else None
    tree = read_yaml(config).tree if settings is not None else None
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"cells": _cells}
    return environment.get_template("page.html").render(
        name=tree.get("name", run_dir.name) if isinstance(tree, dict) else run_dir.name,
        sections=SECTIONS,
        earlier=earlier,
        evaluated=str(run_dir / "evaluate"),
        is_evaluated=(run_dir / "evaluate" / "table.json").is_file(),
        results=results(run_dir),
        others=other_evaluations(run_dir),
        shown=_shown_images(run_dir),
        predicted=_predicted(run_dir),
        scenes=_scenes(run_dir),
        no_pairs=_no_pairs(run_dir, tree),
        synthetic=_synthetic(run_dir),
        teacher=teacher_trainings(run_dir),
        students=student_trainings(run_dir),
        data=_data(run_dir),
        settings=settings,
    )


def _shown_images(run_dir: Path) -> dict | None:
    """The pictures that evaluate wrote of held-out images, by group, with the colours of their classes."""
    folder = run_dir / "evaluate" / "pictures"
    index = read_json(folder / "index.json")
    if index is None or not index["images"]:
        return None
    groups: dict[str, list[dict]] = {}
    for image in index["images"]:
        files = {name: pictures.embed(folder / file) for name, file in image["files"].items()}
        groups.setdefault(image["group"], []).append(
            {"key": image["key"], "miou": image["miou"], "pictures": files, "is_wide": max(image["size"]) > _WIDE}
        )
    return {"groups": groups, "classes": _legend(index["classes"])}


def _predicted(run_dir: Path) -> list[dict]:
    """Overlays that the last call of predict wrote, of each student."""
    calls = []
    for path in sorted((run_dir / "predict").glob("*/predict.json")):
        record = read_json(path)
        if "training_set" not in record:  # `dakd predict --student` was given this folder
            continue
        names = record["images"][:_NUM_PREDICTIONS]
        files = {name: path.with_name(f"{name}_overlay.png") for name in names}
        overlays = {name: pictures.embed(file) for name, file in files.items() if file.is_file()}
        if overlays:
            calls.append({"folder": str(path.parent), "record": record, "overlays": overlays})
    return calls


def _scenes(run_dir: Path) -> list[dict]:
    """The quick-looks of the run's scenes."""
    found = []
    for path in sorted((run_dir / "scene").glob(f"*/*{_QUICKLOOK}")):
        name = path.name.removesuffix(_QUICKLOOK)
        if (record := read_json(path.with_name(f"{name}.json"))) is not None:
            facts = {key: record[key] for key in ("num_slicks", "num_ships", "warning")}
            found.append({"name": name, "student": path.parent.name, "picture": pictures.embed(path)} | facts)
    return found


def _no_pairs(run_dir: Path, tree: object) -> str | None:
    """A sentence where the run has no teacher and no pairs, and by its settings needs none.  tree: of these."""
    cfg = tree.get("train_saross") if isinstance(tree, dict) else None
    sets = cfg.get("training_sets") if isinstance(cfg, dict) else None
    is_made = any((run_dir / name).exists() for name in ("train_jointnet", "generate"))
    if not sets or is_made or any("synthetic" in str(name) for name in sets):
        return None
    return f"There is none: no student of {', '.join(sets)} learns from generated pairs."


def _synthetic(run_dir: Path) -> dict:
    folder = run_dir / "evaluate" / "pictures"
    index = read_json(folder / "index.json") or {"overlays": {}}
    overlays = {
        name: [[pictures.embed(folder / file) for file in pair["files"].values()] for pair in pairs]
        for name, pairs in index["overlays"].items()
    }
    return {
        "statistics": _statistics(read_json(run_dir / "evaluate" / "generation.json")),
        "sheet": _contact_sheet(run_dir / "generate"),
        "overlays": overlays,
        "classes": _legend(index["classes"]) if overlays else None,
    }


def _statistics(statistics: dict | None) -> dict | None:
    if statistics is None:
        return None
    real, synthetic = statistics["real"], statistics["synthetic"]
    fidelity, physics = statistics["fidelity"], statistics["physics"]
    is_measured = "absent" not in fidelity
    curves = physics["curves"]
    return {
        "agreement": statistics["agreement"],
        "table": statistics_rows(statistics),
        "fidelity_absent": fidelity.get("absent"),
        "fidelity": fidelity_rows(fidelity) if is_measured else None,
        "fidelity_notes": fidelity_notes(fidelity) if is_measured else [],
        "physics": physics_rows(physics),
        "physics_note": physics_note(physics),
        "physics_charts": [*_spectrum_chart(curves["spectrum"]), *_lag_chart(curves["autocorrelation"])],
        "grey_charts": [
            _grey_chart(name, {"real": ours, "synthetic": theirs})
            for name, ours, theirs in zip(real["shares"], real["grey_histogram"], synthetic["grey_histogram"])
            if sum(ours) or sum(theirs)
        ],
    }


def _data(run_dir: Path) -> dict:
    folders = {"train": "prepare/train", "unlabelled": f"prepare/{UNLABELLED}", "test": "prepare/test",
               "synthetic": "generate", "pseudo-labelled": "pseudo_label"}  # fmt: skip
    indexes = {name: read_json(run_dir / folder / "index.json") for name, folder in folders.items()}
    sets = {name: index for name, index in indexes.items() if index is not None}
    prepared = read_json(run_dir / "prepare" / "report.json")
    balance = read_json(run_dir / "balance" / "balance.json") or {}
    return {
        "sets": _set_rows(sets) if sets else None,
        "notes": notes(prepared) if prepared is not None else [],
        "balance": [[name, f"{one:.6g}" if isinstance(one, float) else str(one)] for name, one in balance.items()],
        "sheet": _contact_sheet(run_dir / "prepare"),
        "classes": _legend(sets["train"]["classes"]) if "train" in sets else None,
    }


def _set_rows(sets: dict[str, dict]) -> tuple[list[str], list[list]]:
    """Header and rows: images, sizes, class shares and fingerprint of each set."""
    classes = next(iter(sets.values()))["classes"]["names"]
    rows = []
    for name, index in sets.items():
        sizes = ", ".join(f"{size} ({count})" for size, count in index["sizes"].items())
        shares = [100 * share if any(index["class_pixels"]) else None for share in index["class_pixel_shares"]]
        rows.append([name, index["num_samples"], sizes, *shares, index["fingerprint"][:12]])
    return ["set", "images", "height x width", *(f"{name}, %" for name in classes), "fingerprint"], rows


# --- pieces -----------------------------------------------------------------------------------------------------------


def _cells(rows: list[list], mark_best: bool) -> list[list[tuple[str, bool]]]:
    """Each cell's text, and whether it is marked: the largest number of its column, unless all are equal."""
    best = {}
    for column in range(1, len(rows[0])) if mark_best and len(rows) > 1 else ():
        numbers = [row[column] for row in rows if isinstance(row[column], float)]
        if numbers and min(numbers) < max(numbers):
            best[column] = max(numbers)
    return [
        [(format_cell(cell), column in best and cell == best[column]) for column, cell in enumerate(row)]
        for row in rows
    ]


def _contact_sheet(folder: Path) -> pictures.Picture | None:
    path = folder / "contact_sheet.png"
    return pictures.embed(path) if path.is_file() else None


def _legend(classes: dict) -> list[tuple[str, tuple[int, int, int]]]:
    table = ClassTable.from_dict(classes)
    return list(zip(table.names, table.colours))


def _grey_chart(class_name: str, histograms: dict[str, list[int]]) -> Markup:
    lines = []
    for (set_name, counts), colour in zip(histograms.items(), COLOURS):
        if total := sum(counts):
            # Bins of four greys: rare classes would show as a comb.
            starts = range(0, len(counts), 4)
            shares = [100 * sum(counts[grey : grey + 4]) / total for grey in starts]
            middles = [grey + 1.5 for grey in starts]
            lines.append(Line(set_name, middles, shares, colour, dashed=set_name == "synthetic"))
    return line_chart(lines, f"grey value of {class_name}", "% of its pixels")


def _spectrum_chart(curves: dict) -> list[Markup]:
    """One chart, or none where a frequency has no power."""
    sets = ("real", "synthetic")
    if any(value is None or value <= 0 for name in sets for value in curves[name]):
        return []
    lines = [
        Line(name, curves["cycles_per_pixel"], curves[name], colour, dashed=name == "synthetic")
        for name, colour in zip(sets, COLOURS)
    ]
    return [line_chart(lines, "cycles per pixel", "power, greys squared", log_y=True)]


def _lag_chart(curves: dict) -> list[Markup]:
    """One chart of the lags along the rows and down the columns, or none where a set has no such windows."""
    if any(value is None for name in ("real", "synthetic") for value in curves[name]):
        return []
    half = len(curves["lags"]) // 2
    lags = list(range(1, half + 1))
    parts = {"rows": slice(half), "columns": slice(half, None)}
    colours = {
        "real": {"rows": COLOURS[0], "columns": COLOURS[5]},
        "synthetic": {"rows": COLOURS[1], "columns": COLOURS[4]},
    }
    lines = [
        Line(f"{name}, {way}", lags, curves[name][part], colours[name][way], dashed=name == "synthetic")
        for name in colours
        for way, part in parts.items()
    ]
    return [line_chart(lines, "lag, pixels", "autocorrelation of speckle")]
