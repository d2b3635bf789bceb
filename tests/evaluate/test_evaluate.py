"""The step as a whole, on a run folder in miniature."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluate_worlds import GreyStudent, scene, write_set
from sealed_edits import content_of

from dakd.config import EvaluateConfig, build_config
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES
from dakd.evaluate.evaluate import evaluate
from dakd.evaluate.inputs import find_students
from dakd.runtime.lock import locked


def test_every_student_is_scored_and_written(run_dir, config, grey_student, capsys):
    evaluation = evaluate(config, run_dir)
    assert list(evaluation.scores) == ["real", "real+synthetic"]
    table = json.loads((run_dir / "evaluate" / "table.json").read_text())
    assert table["students"]["real"]["miou"] == evaluation.scores["real"].miou < 1
    assert table["num_images"] == 5 and table["split"] == "test"
    one = json.loads((run_dir / "evaluate" / "real+synthetic.json").read_text())
    assert one["student"] == "real+synthetic" and len(one["sha256"]) == 64
    assert sum(map(sum, one["counts"])) == one["num_pixels"]
    text = (run_dir / "evaluate" / "table.txt").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "tiny: 5 images of the test split" in text and "pixel share" in text


def test_all_scales_of_the_settings_count_and_are_written(run_dir, config, grey_student, capsys):
    alone = evaluate(config, run_dir).scores["real"].miou
    pictures = {path.name: path.read_bytes() for path in (run_dir / "evaluate" / "pictures").glob("*_real.png")}
    settings = config.model_dump(mode="json")
    settings["evaluate"]["scales"] = [0.5, 1.0]
    assert "are replaced" not in capsys.readouterr().out
    fused = evaluate(build_config(settings), run_dir).scores["real"].miou
    replaced = "tables of weights ema at scales [1.0] are replaced by those of weights ema at scales [0.5, 1.0]"
    assert replaced in capsys.readouterr().out
    # Scores of 4 x 4 blocks at half the size are blurred, and a blurred score outvotes some of the sharp ones.
    assert fused < alone
    assert json.loads((run_dir / "evaluate" / "table.json").read_text())["scales"] == [0.5, 1.0]
    assert any((run_dir / "evaluate" / "pictures" / name).read_bytes() != old for name, old in pictures.items())


def test_the_synthetic_set_is_compared_with_the_real_one(run_dir, config, grey_student):
    generation = evaluate(config, run_dir).generation
    assert generation["agreement"]["miou"] == 1.0
    assert generation["real"]["mean_grey"]["oil"] == generation["synthetic"]["mean_grey"]["oil"] == 20
    assert generation["synthetic"]["contrast_grey"] == 80
    assert content_of(run_dir / "evaluate" / "generation.json") == generation


def test_the_images_are_compared_beyond_greys_and_the_table_shows_it(run_dir, config, grey_student):
    evaluation = evaluate(config, run_dir)
    generation = evaluation.generation
    assert "extractor is none" in generation["fidelity"]["absent"]
    assert generation["physics"]["num_images"] == {"real": 4, "synthetic": 3}
    assert re.search(r"share of oil, %( +[\d.]+){2}", evaluation.table)
    assert "FID and its relatives: not measured (evaluate.fidelity.extractor is none" in evaluation.table


def test_an_extractor_that_cannot_be_had_stops_before_the_students(run_dir, config, monkeypatch):
    wanted = {"fidelity": {"extractor": "inception", "weights": str(run_dir / "absent.pth")}}
    monkeypatch.setattr("dakd.evaluate.evaluate.evaluate_student", None)
    with pytest.raises((ValueError, RuntimeError), match=r"absent\.pth|pip install"):
        evaluate(config.model_copy(update={"evaluate": EvaluateConfig(**wanted)}), run_dir)


def test_without_a_synthetic_set_the_table_says_so(run_dir, config, grey_student):
    (run_dir / "generate" / "index.json").unlink()
    evaluation = evaluate(config, run_dir)
    assert evaluation.generation is None and "synthetic set: none" in evaluation.table
    assert not (run_dir / "evaluate" / "generation.json").exists()


def test_pictures_show_truth_and_every_student(run_dir, config, grey_student):
    stale = run_dir / "evaluate" / "pictures" / "stale.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    evaluate(config, run_dir)
    folder = run_dir / "evaluate" / "pictures"
    index = json.loads((folder / "index.json").read_text())
    assert not stale.exists()
    groups = [image["group"] for image in index["images"]]
    assert groups == ["held-out"] * 2 + ["best"] * 2 + ["worst"] * 2
    assert index["images"][2]["key"] == "test-0"
    for image in index["images"]:
        assert list(image["files"]) == ["image", "truth", "real", "real+synthetic"]
        assert all((folder / file).is_file() for file in image["files"].values())
    assert len(index["overlays"]["real"]) == 4 and len(index["overlays"]["synthetic"]) == 3


def test_an_evaluation_is_refused_while_another_writes_the_same_tables(run_dir, config, grey_student):
    picture = run_dir / "evaluate" / "pictures" / "of_the_other.png"
    picture.parent.mkdir(parents=True)
    picture.touch()
    with locked(run_dir / "evaluate"), pytest.raises(RuntimeError, match=r"evaluate is being written by process"):
        evaluate(config, run_dir)
    assert picture.exists()
    evaluate(config, run_dir)


def test_raw_weights_are_other_files(run_dir, config):
    with pytest.raises(ValueError, match=r"student_raw.safetensors; run the step train_saross"):
        find_students(run_dir, "raw")
    (run_dir / "train_saross" / "real" / "student_raw.safetensors").touch()
    assert list(find_students(run_dir, "raw")) == ["real"]


def test_a_dataset_without_a_test_split_is_distinguished_from_one_that_is_not_prepared(run_dir, config, grey_student):
    shutil.rmtree(run_dir / "prepare" / "test")
    with pytest.raises(ValueError, match=r"has no test split, only train; put labelled images into test/images"):
        evaluate(config, run_dir)
    shutil.rmtree(run_dir / "prepare")
    with pytest.raises(ValueError, match="`dakd prepare`, `dakd generate`"):
        evaluate(config, run_dir)


def test_test_images_without_labels_are_refused_before_the_first_student_is_loaded(run_dir, config):
    shutil.rmtree(run_dir / "prepare" / "test")
    write_set(run_dir / "prepare" / "test", [replace(scene("a", 1), label=None), scene("b", 2)])
    with pytest.raises(ValueError, match=r"the test split has labels for 1 of 2 images; .*masks/ next to its images/"):
        evaluate(config, run_dir)


def test_a_student_of_other_classes_is_refused(run_dir, config, monkeypatch):
    metadata = {"classes": SOS_CLASSES.to_dict()}
    monkeypatch.setattr("dakd.weights.load_student", lambda path, device: (None, metadata))
    with pytest.raises(ValueError, match=r"knows the classes sea, oil, .*train a student on this dataset"):
        evaluate(config, run_dir)


ONE_RANK = """
import sys
sys.path.insert(0, sys.argv[1])
import evaluate_worlds
from dakd import weights
from dakd.config import load_config
from dakd.data.sample import OSD_CLASSES
from dakd.evaluate import evaluate as step
from dakd.runtime.distributed import shut_down

weights.load_student = lambda path, device: (evaluate_worlds.GreyStudent().eval(), {"classes": OSD_CLASSES.to_dict()})
step.evaluate(load_config(sys.argv[2]))
shut_down()
"""


def test_two_ranks_write_the_table_of_one(run_dir, config, grey_student, tmp_path):
    evaluate(config, run_dir)
    files = [run_dir / "evaluate" / name for name in ("table.json", "generation.json", "table.txt")]
    alone = [path.read_bytes() for path in files]
    shutil.rmtree(run_dir / "evaluate")
    place = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-c", ONE_RANK, str(Path(__file__).parents[1]), str(run_dir / "config.yaml")]
    ranks = [subprocess.Popen(command, env=os.environ | place | {"RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    assert [path.read_bytes() for path in files] == alone


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_pairs_are_evaluated_before_there_is_a_student(run_dir, config):
    shutil.rmtree(run_dir / "train_saross")
    evaluation = evaluate(config, run_dir)
    assert not evaluation.scores and evaluation.generation["synthetic"]["num_images"] > 0
    written = json.loads((run_dir / "evaluate" / "generation.json").read_text())
    assert written["physics"] and "no students" in evaluation.table
    shutil.rmtree(run_dir / "generate")
    with pytest.raises(ValueError, match="no student at"):
        evaluate(config, run_dir)


@pytest.fixture
def with_temperature(monkeypatch):
    """All weight files hold the student of grey values, with this temperature in its metadata where one is given."""

    def use(temperature=None, net=GreyStudent):
        facts = {} if temperature is None else {"temperature": temperature}

        def load(path, device):
            return net().eval(), {"classes": OSD_CLASSES.to_dict()} | facts

        monkeypatch.setattr("dakd.weights.load_student", load)

    return use


def test_the_calibration_error_has_the_temperature_and_the_plain_one_stands_beside_it(
    run_dir, config, with_temperature
):
    def scores(temperature=None):
        with_temperature(temperature)
        evaluate(config, run_dir)
        return json.loads((run_dir / "evaluate" / "real.json").read_text())

    plain, calibrated = scores(), scores(20.0)
    assert "uncalibrated" not in plain["calibration"] and "temperature" not in plain["calibration"]
    assert calibrated["calibration"]["uncalibrated"] == plain["calibration"]
    assert calibrated["calibration"]["temperature"] == 20
    assert calibrated["calibration"]["ece"] > plain["calibration"]["ece"] + 0.02  # the student is nearly always right
    assert calibrated["calibration"]["num_pixels"] == plain["calibration"]["num_pixels"]
    same = ("counts", "miou", "objects", "boundary_iou")
    assert {name: calibrated[name] for name in same} == {name: plain[name] for name in same}


def test_a_temperature_that_is_none_is_refused(run_dir, config, with_temperature):
    with_temperature(-1.0)
    with pytest.raises(ValueError, match=r"temperature of .*safetensors is -1\.0; expected a positive number"):
        evaluate(config, run_dir)


def test_a_student_that_predicts_one_class_is_named_in_the_table(run_dir, config, with_temperature):
    class Seas(GreyStudent):
        def forward(self, image):
            return super().forward(image) + 1e6 * torch.eye(5)[0].view(1, 5, 1, 1)

    with_temperature(net=Seas)
    notes = evaluate(config, run_dir).notes
    assert notes[0] == (
        "real predicts sea for every pixel of 5 images, though oil, look-alike, ship, land occur there; its scores "
        "rank nothing: train longer, or weigh the classes (train_saross.loss.class_weights)"
    )
    assert content_of(run_dir / "evaluate" / "table.json")["notes"] == list(notes) and len(notes) == 2
    assert all(note in (run_dir / "evaluate" / "table.txt").read_text() for note in notes)
    with_temperature()
    assert evaluate(config, run_dir).notes == ()
    assert content_of(run_dir / "evaluate" / "table.json")["notes"] == []
