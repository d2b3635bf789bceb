"""The step `predict`: a student's class map, overlay and class probabilities for each image, at its own size.

For an image NAME, of any size that fits in memory, are written

    NAME_class.png                 class ids as a palette PNG in the colours of the class table
    NAME_overlay.png               the image with the predicted classes laid over it
    NAME_probability_CLASS.png     8-bit grey, 255 times the probability of the class, one file a class

NAME is the stem of the image's file name or the key of its record; where two images would share a file, or the name is
not safe on every file system, it is the whole file name, or has digits of a sha256.

The step writes to RUN/predict/TRAINING_SET, with a predict.json: the student that made all predictions in the folder,
`sources` (where each comes from, by name), and of the last call its inputs, the names that it wrote and the images that
failed. Calls with one student add to the folder; one with another student (other weights or scales) replaces it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dakd.config import Config
from dakd.data.shards import ShardSet, open_split
from dakd.names import is_file_part
from dakd.predict.images import BadImages, Source, file_sources, key_source, name_sources, predict_sources
from dakd.predict.prediction import output_endings
from dakd.predict.student import Student
from dakd.runtime.distributed import barrier, device, init_if_many, is_main
from dakd.runtime.files import file_hash
from dakd.runtime.runlog import say
from dakd.runtime.sealed import files_of, read_json, remove_manifest, write_json, write_manifest
from dakd.weights import STUDENT_FILES


def predict(cfg: Config, run_dir: str | Path | None = None) -> Path:
    """Predict `predict.inputs`, or the first images of the test split; returns the folder of the outputs.

    The student's weights and scales are those that are evaluated (`evaluate.weights`, `evaluate.scales`). Every rank
    takes its share. Raises BadImages at the end when some images were not predicted.
    """
    init_if_many()
    run_dir = Path(run_dir) if run_dir is not None else cfg.run_path
    training_set = cfg.predict.training_set or cfg.train_saross.training_sets[-1]
    weights = run_dir / "train_saross" / training_set / STUDENT_FILES[cfg.evaluate.weights]
    if not weights.is_file():
        raise ValueError(f"no student at {weights}; run the step train_saross, or set predict.training_set")
    out_dir = run_dir / "predict" / training_set
    if cfg.predict.inputs is not None:
        inputs = Path(cfg.predict.inputs).expanduser()
        sources = file_sources([inputs], out_dir)
    else:
        inputs = run_dir / "prepare" / "test"
        if not (inputs / "index.json").is_file():
            raise ValueError(
                f"no test split at {inputs}; name images: predict.inputs=FILE_OR_FOLDER, or give the dataset a test "
                "split and prepare it"
            )
        sources = _held_out_sources(open_split(run_dir / "prepare", "test"), cfg.predict.num_images)
    student = Student.load(weights, device(), cfg.evaluate.scales)
    record = {
        "inputs": str(inputs),
        "training_set": training_set,
        "student": str(weights),
        "student_sha256": file_hash(weights),
        "scales": list(cfg.evaluate.scales),
        "endings": output_endings(student.classes),
    }
    before = _read_record(out_dir)
    is_same = all(before.get(key) == record[key] for key in ("student_sha256", "scales", "endings"))
    earlier = before["sources"] if is_same else {}
    sources = name_sources(sources, student.classes, out_dir, earlier)
    barrier()  # every rank has read the record before it is replaced
    if is_main():
        remove_manifest(out_dir)
        if before and not is_same:
            _remove_predictions(out_dir, before)
        # Before the pictures too: a call that is killed must not leave them under another student's record.
        planned = earlier | {source.name: source.where for source in sources}
        write_json(out_dir / "predict.json", record | {"images": [], "sources": planned, "failed": {}})
    barrier()
    problem = None
    try:
        # Whole, as `evaluate` takes them: the scores hold for these predictions.
        predict_sources(partial(student.predict, tile=None), sources, out_dir)
    except BadImages as error:
        problem = error
    if is_main():
        failed = dict(problem.failures) if problem else {}
        names = {source.name: source.where for source in sources}
        written = [name for name, where in names.items() if where not in failed]
        kept = {name: where for name, where in (earlier | names).items() if where not in failed}
        write_json(out_dir / "predict.json", record | {"images": written, "sources": kept, "failed": failed})
        ours = {"predict.json", *(f"{name}{ending}" for name in kept for ending in record["endings"])}
        write_manifest(out_dir, [path for path in files_of(out_dir) if path.name in ours])
    if problem:
        raise problem
    say(f"predictions of the student trained on {training_set}: {out_dir}")
    return out_dir


def _read_record(out_dir: Path) -> dict:
    """The predict.json of an earlier call; {} where there is none that can be used."""
    try:
        found = read_json(out_dir / "predict.json")
    except (ValueError, OSError):
        say(f"{out_dir / 'predict.json'} cannot be read; it is written anew")
        return {}
    sources, endings = (found.get(key) if isinstance(found, dict) else None for key in ("sources", "endings"))
    if not isinstance(sources, dict) or not isinstance(endings, list):
        return {}
    # Files are removed by these names: none may lead out of the folder.
    parts = [*sources, *(f"x{ending}" for ending in endings)]
    return found if all(map(is_file_part, parts)) else {}


def _remove_predictions(out_dir: Path, record: dict) -> None:
    for name in record["sources"]:
        for ending in record["endings"]:
            (out_dir / f"{name}{ending}").unlink(missing_ok=True)
    say(f"{out_dir}: {len(record['sources'])} predictions by other weights or at other scales are removed")


def _held_out_sources(held_out: ShardSet, num_images: int) -> list[Source]:
    return [
        key_source(held_out.key(i), lambda i=i: held_out.read(i).sar) for i in range(min(num_images, len(held_out)))
    ]
