"""The step `predict`: a student's class map, overlay and class probabilities for each image, at its own size.

For an image NAME, of any size that fits in memory, are written

    NAME_class.png                 class ids as a palette PNG in the colours of the class table
    NAME_overlay.png               the image with the predicted classes laid over it
    NAME_probability_CLASS.png     8-bit grey, 255 times the probability of the class, one file a class

The step writes to RUN/predict/TRAINING_SET, with a predict.json of the last call: its inputs, its student and the
names of the images that it wrote.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dakd.config import Config
from dakd.data.shards import ShardSet, open_split
from dakd.predict.images import BadImages, Source, file_sources, predict_sources
from dakd.predict.prediction import file_part
from dakd.predict.student import Student
from dakd.runtime.distributed import device, init_if_many, is_main
from dakd.runtime.files import file_hash
from dakd.runtime.runlog import say
from dakd.runtime.sealed import write_json
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
    problem = None
    try:
        # Whole, as `evaluate` takes them: the scores hold for these predictions.
        predict_sources(partial(student.predict, tile=None), sources, out_dir)
    except BadImages as error:
        problem = error
    if is_main():
        failed = {where for where, _ in problem.failures} if problem else set()
        record = {
            "inputs": str(inputs),
            "training_set": training_set,
            "student": str(weights),
            "student_sha256": file_hash(weights),
            "scales": list(cfg.evaluate.scales),
            "images": [source.name for source in sources if source.where not in failed],
        }
        write_json(out_dir / "predict.json", record)
    if problem:
        raise problem
    say(f"predictions of the student trained on {training_set}: {out_dir}")
    return out_dir


def _held_out_sources(held_out: ShardSet, num_images: int) -> list[Source]:
    return [
        Source(file_part(held_out.key(i)), held_out.key(i), lambda i=i: held_out.read(i).sar)
        for i in range(min(num_images, len(held_out)))
    ]
