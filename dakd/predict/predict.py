"""The step `predict`: a student's class map, overlay and class probabilities for each image, at its own size.

For an image NAME, of any size that fits in memory, are written

    NAME_class.png                 class ids as a palette PNG in the colours of the class table
    NAME_overlay.png               the image with the predicted classes laid over it
    NAME_probability_CLASS.png     8-bit grey, 255 times the probability of the class, one file a class

NAME is the stem of the image's file name or the key of its record; where two images would share a file, or the name is
not safe on every file system, it is the whole file name, or has digits of a sha256.

The step writes to RUN/predict/TRAINING_SET, with a predict.json (see `record.py`). Calls with one student add to the
folder; one with another student (other weights or scales) replaces its predictions. Scenes that `predict.scenes` names
go to RUN/scene/TRAINING_SET, as `dakd scene` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dakd.config import Config
from dakd.data.prepared import open_prepared
from dakd.data.shards import ShardSet
from dakd.predict.images import Source, file_sources, key_source
from dakd.predict.record import predict_to_folder
from dakd.predict.student import Student
from dakd.runtime.distributed import barrier, device, init_if_many, is_main
from dakd.runtime.files import file_hash
from dakd.runtime.lock import locked
from dakd.runtime.runlog import say
from dakd.scene.detect import detect_all
from dakd.scene.options import SceneOptions
from dakd.scene.packages import need_all
from dakd.scene.rasters_in import scenes_in
from dakd.scene.simulated import SimulatedScene, write_simulated
from dakd.weights import STUDENT_FILES

SIMULATED, SIMULATED_FILE = "simulated", "simulated.tif"
SIMULATED_SCENE = SimulatedScene(768, 1024, collar=40)


def predict(cfg: Config, run_dir: str | Path | None = None) -> Path:
    """Predict `predict.inputs`, or the first images of the test split; returns the folder of the outputs.

    The student's weights and scales are those that are evaluated (`evaluate.weights`, `evaluate.scales`). Every rank
    takes its share. Raises BadImages at the end when some images were not predicted, and RuntimeError where another
    process writes to that folder.
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
        refuse_no_test_split(inputs, (inputs / "index.json").is_file())
        sources = _held_out_sources(open_prepared(cfg, "test", run_dir), cfg.predict.num_images)
    student = Student.load(weights, device(), cfg.evaluate.scales)
    maker = {"student_sha256": file_hash(weights), "scales": list(cfg.evaluate.scales)}
    facts = {"inputs": str(inputs), "training_set": training_set, "student": str(weights)}
    # Whole, as `evaluate` takes them: the scores hold for these predictions.
    whole = partial(student.predict, tile=None)
    with locked(out_dir):
        radiometry = student.radiometry
        predict_to_folder(
            whole, sources, out_dir, student.classes, maker, facts, is_own=True, radiometry=radiometry
        )
    say(f"predictions of the student trained on {training_set}: {out_dir}")
    if cfg.predict.scenes:
        outline_scenes(cfg.predict.scenes, student, run_dir / "scene" / training_set)
    return out_dir


def outline_scenes(scenes: Sequence[str], student: Student, out_dir: Path) -> None:
    """The slicks of scenes, one of them perhaps simulated, as `dakd scene` makes them; ranks share the work.

    Results of another student or of other settings are replaced.
    """
    need_all()
    made = out_dir / SIMULATED_FILE
    is_whole = made.with_suffix(".truth.geojson").exists()  # written last
    if SIMULATED in scenes and is_main() and not is_whole:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_simulated(made, SIMULATED_SCENE)
    barrier()
    found = scenes_in([str(made) if one == SIMULATED else one for one in scenes])
    results = detect_all(found, student, out_dir, SceneOptions(), overwrite=True)
    slicks = sum(one.record["num_slicks"] for one in results)
    say(f"scenes: {slicks} slicks in {len(results)}: {', '.join(str(one.files['quicklook']) for one in results)}")


def refuse_no_test_split(folder: Path, is_there: bool) -> None:
    """ValueError where the images to predict are those of a test split, and there is none.  folder: of its shards."""
    if not is_there:
        raise ValueError(
            f"no test split at {folder}; name images: predict.inputs=FILE_OR_FOLDER, or give the dataset a test "
            "split and prepare it"
        )


def _held_out_sources(held_out: ShardSet, num_images: int) -> list[Source]:
    return [
        key_source(held_out.key(i), lambda i=i: held_out.read(i).sar) for i in range(min(num_images, len(held_out)))
    ]
