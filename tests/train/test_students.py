"""Every student by name through the steps: trained, saved, loaded, evaluated and used."""

from __future__ import annotations

import os

import pytest
import torch
from small_rivals import SMALL_RIVALS, small_rival
from worlds import losses_of, toy_config, with_engine, with_pairs

from dakd.config import Config, build_config
from dakd.data.prepare import prepare
from dakd.data.sample import ClassTable
from dakd.evaluate.evaluate import evaluate
from dakd.predict.predict import predict
from dakd.runtime.runlog import read_records
from dakd.runtime.tensor_files import load_state
from dakd.train.dry_run import describe_saross
from dakd.train.saross import StudentTraining, student_folder, train_saross
from dakd.weights import load_student, save_student

RIVALS = tuple(SMALL_RIVALS)
# One setting each that a foreign net could break.
WITH = {
    "unet": {"batch_norm": "frozen"},
    "pspnet": {"loss": {"dice_samples": "all"}},
    "segformer": {"loss": {"kd_form": "dist"}},
    "deeplabv2": {"loss": {"hard_labels": True, "boundary": 1.0}},
    "cbdnet": {"loss": {"boundary": 1.0}},
}


def with_rival(folder, name: str, **train: object) -> Config:
    """A toy run with pairs whose student is the named one."""
    engine = {"num_workers": 0, "log_every": 1, "checkpoint_every": 2, "wandb": "off", "threads": 1}
    engine |= {"channels_last": name == "linknet", "precision": "autocast" if name == "deeplabv3plus" else "auto"}
    settings = {"student": small_rival(name), "steps": 2, "engine": engine} | WITH.get(name, {}) | train
    return with_pairs(folder, **settings)


@pytest.mark.usefixtures("cpu_with_amx")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("linknet", "pspnet", "unetplusplus"))) for n in RIVALS]
)
def test_a_rival_goes_through_the_steps_of_a_student(tmp_path, name):
    config = with_rival(tmp_path, name)
    assert "GMAC" in describe_saross(config)
    start = {key: value.clone() for key, value in StudentTraining(config, "real").build(True).net.state_dict().items()}
    train_saross(config, ("real+synthetic",))
    folder = student_folder(config, "real+synthetic")
    trained = load_state(folder / "student_raw.safetensors")
    assert trained.keys() == start.keys()
    weights = [key for key, value in trained.items() if value.is_floating_point() and "running" not in key]
    assert all(value.isfinite().all() for value in trained.values())
    assert not all(torch.equal(trained[key], start[key]) for key in weights)

    net, facts = load_student(folder / "student.safetensors")
    assert facts["student"]["name"] == name and facts["student"]["encoder"] == SMALL_RIVALS[name]["encoder"]
    image = torch.randn(1, 3, 65, 83)
    classes = ClassTable.from_dict(facts["classes"])
    save_student(tmp_path / "again.safetensors", net, config.train_saross.student, classes, {})
    with torch.no_grad():
        logits = net(image)
        assert torch.equal(load_student(tmp_path / "again.safetensors")[0](image), logits)
    assert logits.shape == (1, 5, 65, 83)

    tree = config.model_dump(mode="json")
    tree |= {"evaluate": {"scales": [0.5, 1.0], "num_pictures": 1, "batch_size": 2}, "predict": {"num_images": 1}}
    config = build_config(tree)
    assert 0 <= evaluate(config).scores["real+synthetic"].to_dict()["miou"] <= 1
    assert len(list(predict(config).glob("*_class.png"))) == 1


def test_the_boundary_term_is_logged_and_makes_another_experiment_where_it_is_on(tmp_path):
    config = with_rival(tmp_path, "cbdnet")
    train_saross(config, ("real",))
    assert all(record["boundary"] > 0 for record in read_records(student_folder(config, "real") / "metrics.jsonl"))
    assert StudentTraining(config, "real").identity["loss"]["boundary"] == 1.0
    without = with_rival(tmp_path / "without", "cbdnet", loss={})
    assert StudentTraining(without, "real").identity["loss"]["boundary"] == 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_with_amx")
@pytest.mark.parametrize("name", ["deeplabv3plus", "segformer"])
def test_a_rival_with_dropout_resumes_as_if_it_had_not_stopped(tmp_path, name):
    straight = with_rival(tmp_path / "straight", name, steps=4)
    train_saross(straight, ("real",))
    broken = with_rival(tmp_path / "broken", name, steps=2)
    train_saross(broken, ("real",))
    broken = with_rival(tmp_path / "broken", name, steps=4)
    train_saross(broken, ("real",))
    ours, theirs = (load_state(student_folder(one, "real") / "student.safetensors") for one in (broken, straight))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segformer", "deeplabv2", "cbdnet"])
def test_a_rival_trains_alike_under_zero_3(tmp_path, name):
    losses = []
    for stage in (1, 3):
        config = with_engine(with_rival(tmp_path / str(stage), name), f"zero{stage}")
        train_saross(config, ("real",))
        losses.append(losses_of(student_folder(config, "real")))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.real_data
def test_every_rival_trains_on_real_images(tmp_path):
    root = os.environ.get("DAKD_REAL_DATA")
    if not root:
        pytest.skip("DAKD_REAL_DATA is not set; it names the folder of the real images")
    tree = toy_config(tmp_path / "run").model_dump(mode="json")
    tree["prepare"] |= {"dataset": "sos", "sensor": "sentinel", "root": f"{root}/sos/dataset", "resize": [64, 64],
                        "max_samples": 12}  # fmt: skip
    tree["train_saross"] |= {"training_sets": ["real"], "steps": 3}
    prepare(build_config(tree), tmp_path / "run")
    for name in RIVALS:
        train = tree["train_saross"] | {"student": small_rival(name), "loss": {"boundary": float(name == "cbdnet")}}
        config = build_config(tree | {"name": name, "train_saross": train})
        train_saross(config)
        folder = student_folder(config, "real")
        losses = losses_of(folder)
        assert len(losses) == 3 and all(0 < loss < 20 for loss in losses)
        scores = evaluate(config).scores["real"].to_dict()
        assert 0 < scores["miou"] < 1
        folder.rename(tmp_path / name)
