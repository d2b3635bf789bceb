"""Cards state the known facts of a set of weights, and nothing of the machine that they were made on."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from sealed_edits import content_of, reseal
from worlds import toy_config, with_ddpm, with_pairs, with_teacher

from dakd.card import card_of, card_text, count_parameters, without_places, write_cards
from dakd.card.subject import read_config
from dakd.card.write import _front_licence
from dakd.config import Config, RefineConfig, build_config
from dakd.data.index import write_index
from dakd.data.prepared import open_prepared
from dakd.data.sample import OSD_CLASSES, ClassTable
from dakd.evaluate.evaluate import evaluate
from dakd.models.registry import build_student
from dakd.runtime.files import file_hash
from dakd.runtime.runlog import save_config
from dakd.runtime.sealed import files_of, write_manifest
from dakd.runtime.tensor_files import read_metadata, save_weights
from dakd.train.saross import StudentTraining
from dakd.weights import STUDENT_FILES, load_teacher, save_student


def train_nothing(config: Config, training_set: str) -> Path:
    """An untrained student with the metadata that its training would write."""
    training = StudentTraining(config, training_set)
    torch.manual_seed(0)
    net = build_student(config.train_saross.student, 5)
    path = training.folder / STUDENT_FILES["ema"]
    facts = training.identity | {"weights": "ema", "views": training.views()}
    save_student(path, net, config.train_saross.student, OSD_CLASSES, facts)
    save_config(config, training.folder)
    return path


def save_teacher(config: Config) -> Path:
    """An untrained teacher with the metadata of stage 3, and the index of pairs as if it had made them."""
    path = config.run_path / "train_jointnet" / "stage3" / "weights_ema.safetensors"
    with_teacher(config.run_path)
    net, facts = load_teacher(path)
    data = [open_prepared(config, "train").fingerprint]
    facts |= {"stage": 3, "data": data, "crop": [16, 16], "flip": False, "global_batch": 4, "seed": 3, "weights": "ema"}
    save_weights(path, net.state_dict(), facts)
    pairs = config.run_path / "generate"
    write_index(pairs, OSD_CLASSES, kind="synthetic", codec="fp16", provenance={"checkpoint": file_hash(path)})
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with a teacher, two students and the evaluation of the first of them."""
    tree = with_pairs(tmp_path_factory.mktemp("finished")).model_dump(mode="json")
    tree["evaluate"] |= {"num_pictures": 0, "bootstrap": 50}
    tree["train_saross"]["optimizer"]["lr_decay"] = "constant"
    config = build_config(tree)
    save_teacher(config)
    train_nothing(config, "real")
    evaluate(config)
    train_nothing(config, "real+synthetic")
    return config.run_path


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_a_students_scores_stand_beside_its_budget_and_a_start_from_another_student_is_named(run):
    weights = run / "train_saross" / "real" / STUDENT_FILES["ema"]
    text = card_text(weights, run=run)
    assert re.search(r"Training\W+4 steps, 16 real and 0 synthetic samples drawn, with repeats", text)
    assert "Encoder starts from" in text
    metadata = read_metadata(weights) | {"init_from": "ab" * 32}
    assert re.search(rf"\WStarts from\W+a student with the sha256 `{'ab' * 32}`", card_of(metadata, 5))


def front_of(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("\n---\n")[0])


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_final_weights_file_gets_a_card(run):
    cards = write_cards(run, licence="cc-by-4.0")
    folders = ["train_jointnet/stage3", "train_saross/real", "train_saross/real+synthetic"]
    assert [str(card.relative_to(run)) for card in cards] == [f"{folder}/README.md" for folder in folders]
    texts = [card.read_text() for card in cards]
    assert ["# SAR-JointNet" in texts[0], "# SAROSS-Net" in texts[1], "# SAROSS-Net" in texts[2]] == [True] * 3
    assert write_cards(run, licence="cc-by-4.0") == cards and [card.read_text() for card in cards] == texts
    assert not list(run.rglob(".README*"))


def test_a_students_scores_are_those_of_its_evaluation(run):
    text = card_text(run / "train_saross" / "real" / "student.safetensors", run=run)
    table = json.loads((run / "evaluate" / "real.json").read_text())
    scores = section(text, "Scores")
    assert "4 images of the test split" in scores
    sea = table["per_class"]["sea"]
    cells = [f"{100 * sea[name]:.2f}" for name in ("iou", "f1", "precision", "recall")]
    assert f"| sea | {' | '.join(cells)} |" in scores
    assert f"mIoU: {100 * table['miou']:.2f}\n" in scores and "interval" not in scores  # of four images
    assert f"Mean boundary IoU (Cheng et al. 2021): {100 * table['boundary_iou']['mean']:.2f}" in scores
    metrics = front_of(text)["model-index"][0]["results"][0]["metrics"]
    assert metrics[0] == {"type": "mean_iou", "name": "mIoU", "value": round(table["miou"], 4)}


def test_a_teachers_scores_are_those_of_the_pairs_that_it_made(run):
    weights = run / "train_jointnet" / "stage3" / "weights_ema.safetensors"
    table = json.loads((run / "evaluate" / "generation.json").read_text())
    scores = section(card_text(weights, run=run), "Scores")
    assert "8 generated images compared with the 12 real images" in scores
    contrast = table["physics"]["measures"]["contrast"]
    assert f"| {contrast['real']:.4g} | {contrast['synthetic']:.4g} | {contrast['distance']:.4g} |" in scores
    assert f"mIoU of {100 * table['agreement']['miou']:.2f} %" in scores


def test_fid_is_shown_where_it_was_measured(run):
    path = run / "evaluate" / "generation.json"
    fidelity = {"metrics": {"fid": {"title": "FID", "value": 41.25, "low": 39.5, "high": 43.0}}}
    reseal(path, content_of(path) | {"fidelity": fidelity})
    text = card_text(run / "train_jointnet" / "stage3" / "weights_ema.safetensors", run=run)
    assert "| FID | 41.25 | 39.5 to 43 |" in section(text, "Scores")
    result = front_of(text)["model-index"][0]["results"][0]
    assert result["metrics"] == [{"type": "fid", "name": "FID", "value": 41.25}]
    assert result["dataset"]["type"] == "simulated" and result["dataset"]["split"] == "train"


def test_scores_of_other_weights_are_not_shown(run):
    student = run / "train_saross" / "real" / "student.safetensors"
    teacher = run / "train_jointnet" / "stage3" / "weights_ema.safetensors"
    for path in (student, teacher):
        tensors = {"only": torch.zeros(3)}
        save_weights(path, tensors, read_metadata(path))
        text = card_text(path, run=run)
        assert section(text, "Scores").strip() == "Not evaluated yet: run `dakd evaluate`."
        assert "model-index" not in front_of(text) and "; 3 parameters." in text


def test_a_card_without_a_run_says_that_its_scores_are_not_known(run):
    text = card_text(run / "train_saross" / "real" / "student.safetensors")
    assert "Not known: this card was written from the weights file only" in section(text, "Scores")
    assert "Dataset: not recorded" in section(text, "Training data")


def test_the_data_are_counted_where_they_are_those_of_the_training(run):
    weights = run / "train_saross" / "real+synthetic" / "student.safetensors"
    data = section(card_text(weights, run=run), "Training data")
    assert "`simulated`" in data and "Training images: 12, 12 of them labelled (12 of 64x64 pixels)" in data
    assert "Synthetic pairs: 8, generated by a diffusion model, with its soft labels" in data
    config = read_config(run, weights.parent)
    save_config(config.model_copy(update={"refine": RefineConfig(pixel_gate=1.25, repeats=3)}), weights.parent)
    refined = "refined by a student of real images: pixels above 1.25 times the mean loss of their class are ignored, "
    assert f"{refined}the hardest stand in the set 3 times" in section(card_text(weights, run=run), "Training data")
    index = run / "prepare" / "train" / "index.json"
    reseal(index, content_of(index) | {"fingerprint": "of other images"})
    assert "Training images: not recorded" in section(card_text(weights, run=run), "Training data")


def test_the_training_is_described_by_the_metadata(run):
    weights = run / "train_saross" / "real" / "student.safetensors"
    facts = section(card_text(weights, run=run), "Training")
    assert "Global batch: 4" in facts and "Crop: 64 x 64 pixels" in facts and "Seed: 3" in facts
    assert "Loss: 1 cross-entropy + 1 Dice\n" in facts and "exponential moving average (decay 0.9)" in facts
    assert "Steps: not recorded" in facts  # a constant rate: the metadata hold no number, and no step was logged
    (weights.parent / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    assert "Steps: 4\n" in section(card_text(weights, run=run), "Training")
    mixed = section(card_text(run / "train_saross" / "real+synthetic" / "student.safetensors", run=run), "Training")
    assert "+ 1 distillation (form temperature, temperature 2)" in mixed
    teacher = run / "train_jointnet" / "stage3" / "weights_ema.safetensors"
    (teacher.parent / "metrics.jsonl").write_text('{"step": 7}\n')
    facts = section(card_text(teacher, run=run), "Training")
    assert "Steps: stage 1: 4, stage 2: 4, stage 3: 7\n" in facts and "factor b 0.4, label loss ce" in facts


def test_the_settings_are_yaml_and_the_lines_of_python_are_python(run):
    for path in write_cards(run):
        text = path.read_text()
        tree = yaml.safe_load(re.search(r"```yaml\n(.*?)```", section(text, "Settings"), re.S).group(1))
        assert tree["seed"] == 3 and "prepare" in tree and "engine" not in str(tree)
        ast.parse(re.search(r"```python\n(.*?)```", section(text, "Use"), re.S).group(1))


def test_parameters_are_those_of_the_net(run):
    config = toy_config(run)
    net = build_student(config.train_saross.student, 5)
    number = sum(parameter.numel() for parameter in net.parameters())
    assert count_parameters({name: one.shape for name, one in net.state_dict().items()}) == number
    assert f"; {number:,} parameters." in card_text(run / "train_saross" / "real" / "student.safetensors", run=run)
    teacher = run / "train_jointnet" / "stage3" / "weights_ema.safetensors"
    net, _ = load_teacher(teacher)
    assert f"; {sum(one.numel() for one in net.parameters()):,} parameters." in card_text(teacher)


def test_a_card_holds_no_path_of_the_machine(run):
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["prepare"] |= {"dataset": "osd", "root": "/home/secret/osd"}
    tree["train_saross"]["student"]["pretrained"] = "/home/secret/mambavision_tiny_1k.pth.tar"
    tree["train_saross"]["synthetic"] = "secret/pairs"
    tree["train_jointnet"]["stage1"]["extra_images"] = ["s3://secret:key@bucket/images?token=secret"]
    tree["train_jointnet"]["stage1"]["streams"] = ["pipe:curl -H secret"]
    tree["generate"]["audit"]["student"] = "secret/student.safetensors"
    tree["data"]["cache"] = "/secret"
    config = build_config(tree)
    for folder in ("train_saross/real", "train_jointnet/stage3"):
        save_config(config, run / folder)
    path = run / "train_saross" / "real" / "student.safetensors"
    facts = read_metadata(path)
    student = facts["student"] | {"pretrained": "/secret/a.pth"}
    save_weights(path, {"only": torch.zeros(1)}, facts | {"student": student})
    texts = [card.read_text() for card in write_cards(run)] + [card_text(path)]
    assert not any("secret" in text or str(run) in text for text in texts)
    assert "mambavision_tiny_1k.pth.tar" in texts[1] and "`a.pth`" in texts[1] and "pairs" in texts[1]
    assert "may not be redistributed" in texts[1]


def test_students_whose_files_were_exchanged_get_no_card(run):
    real, mixed = (run / "train_saross" / name for name in ("real", "real+synthetic"))
    for folder in (real, mixed):
        write_manifest(folder, files_of(folder))
    write_cards(run)
    aside = (real / "student.safetensors").rename(run / "aside")
    (mixed / "student.safetensors").rename(real / "student.safetensors")
    aside.rename(mixed / "student.safetensors")
    with pytest.raises(ValueError, match=r"real/student\.safetensors is not the file that its step wrote here"):
        write_cards(run)


def test_only_places_are_cut():
    tree = {
        "encoder": "timm:hf_hub:timm/resnet18",
        "classes": {"names": ["/sea", "oil"]},
        "options": [{"file": "C:\\Users\\me\\a.pth", "drop": 0.1}],
        "student": {"pretrained": "weights/b.pth"},
        "pseudo": "labelled/by/me",
        "root": "data",
    }
    wanted = {"options": [{"file": "a.pth", "drop": 0.1}], "student": {"pretrained": "b.pth"}, "pseudo": "me"}
    assert without_places(tree) == {name: wanted.get(name, tree[name]) for name in tree if name != "root"}


def test_a_card_of_someone_else_is_kept_and_no_other_is_written(run):
    own = run / "train_saross" / "real+synthetic" / "README.md"
    own.write_text("# Mine\n")
    with pytest.raises(ValueError, match=r"README.md was not written by dakd.*move it away"):
        write_cards(run)
    assert own.read_text() == "# Mine\n" and list(run.rglob("README.md")) == [own]


def test_what_is_no_run_and_a_run_without_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not a run folder.*config.yaml; give"):
        write_cards(tmp_path)
    config = toy_config(tmp_path)
    save_config(config, tmp_path / "prepare")
    with pytest.raises(ValueError, match=r"neither train_jointnet/stage3/weights_ema.*finish dakd train_jointnet"):
        write_cards(tmp_path)


def test_a_ddpm_has_a_card_and_a_stage_1_has_none(tmp_path):
    config = with_ddpm(tmp_path)
    save_config(config, tmp_path / "prepare")
    (card,) = write_cards(tmp_path)
    text = card.read_text()
    assert card.parent.name == "ddpm" and "# DDPM: SAR images with labels" in text and "label loss" not in text
    assert "teacher.sample(8, size=(16, 16), steps=3, seed=0)" in text
    generate = config.generate.model_copy(update={"solver": "dpmpp_2m", "spacing": "trailing"})
    save_config(config.model_copy(update={"generate": generate}), tmp_path / "prepare")
    (card,) = write_cards(tmp_path)
    assert 'steps=3, solver="dpmpp_2m", spacing="trailing", seed=0)' in card.read_text()
    path = tmp_path / "stage1.safetensors"
    save_weights(path, {"only": torch.zeros(1)}, {"kind": "unet"})
    with pytest.raises(ValueError, match=r"holds unet; expected a student or a teacher"):
        card_text(path)


def test_damaged_metadata_and_scores_are_refused_in_words(run):
    path = run / "train_saross" / "real" / "student.safetensors"
    with pytest.raises(ValueError, match="are not whole; write or copy it again"):
        card_of(read_metadata(path) | {"student": {"name": "nobody"}}, 1)
    with pytest.raises(ValueError, match="another version or damaged"):
        card_of(read_metadata(path) | {"optimizer": {"total_steps": 3}}, 1)
    (run / "evaluate" / "real.json").write_text("{")
    with pytest.raises(ValueError, match=r"real\.json does not end with the checksum .*dakd verify RUN names"):
        card_text(path, run=run)


def test_class_names_stay_text(run):
    table = ClassTable(("sea|water", "<b>oil</b>"), ((0, 0, 0), (0, 255, 255)))
    metadata = read_metadata(run / "train_saross" / "real" / "student.safetensors") | {"classes": table.to_dict()}
    classes = section(card_of(metadata, 1), "Classes")
    assert r"| 0 | sea\|water | #000000 |" in classes and r"| 1 | \<b\>oil\</b\> | #00ffff |" in classes


def test_a_pretrained_mamba_vision_passes_its_licence_on(run):
    facts = read_metadata(run / "train_saross" / "real" / "student.safetensors")
    assert "CC BY-NC-SA" not in card_of(facts, 1)
    student = facts["student"] | {"pretrained": "mambavision_tiny_1k.pth.tar"}
    assert "CC BY-NC-SA 4.0: non-commercial" in section(card_of(facts | {"student": student}, 1), "Licence")
    other = student | {"encoder": "resnet34", "encoder_options": {}}
    assert "whose licence applies too" in section(card_of(facts | {"student": other}, 1), "Licence")


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        (None, {"license": "unknown"}),
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("Apache 2.0", {"license": "apache-2.0"}),
        ("House terms, v1", {"license": "other", "license_name": "house-terms-v1"}),
        ("https://a.org/l", {"license": "other", "license_name": "custom", "license_link": "https://a.org/l"}),
    ],
)
def test_a_licence_is_an_identifier_of_the_hub_or_other_with_a_name(licence, fields):
    assert _front_licence(licence) == fields


def test_the_front_matter_is_read_by_huggingface_hub(run):
    hub = pytest.importorskip("huggingface_hub")
    for path in write_cards(run, licence="My terms: none"):
        data = hub.ModelCard(path.read_text()).data
        is_student = "saross" in str(path)
        assert data.pipeline_tag == ("image-segmentation" if is_student else "unconditional-image-generation")
        assert (data.license, data.license_name, data.library_name) == ("other", "my-terms-none", "dakd")
        results = data.eval_results or []
        is_evaluated = path.parent.name == "real"
        assert [one.metric_type for one in results] == (["mean_iou", "f1", "accuracy"] if is_evaluated else [])
        assert all(one.dataset_type == "simulated" and 0 <= one.metric_value <= 1 for one in results)


def test_a_card_states_the_held_out_images_and_the_temperature(run):
    path = run / "train_saross" / "real" / "student.safetensors"
    facts = read_metadata(path)
    assert "Held-out training images" not in card_of(facts, 10) and "Calibration:" not in card_of(facts, 10)
    facts |= {
        "validation": {"share": 0.25, "every": 2, "keep": "best", "patience": 3},
        "validation_scores": {"num_images": 3, "step": 40, "miou": 0.5123, "loss": 0.4, "ended_early_at": 46},
        "temperature": 1.375,
    }
    text = card_of(facts, 10)
    assert (
        "- Held-out training images: 3 (25 %); the weights are of step 40, the best of all steps scored on them, with "
        "an mIoU of 51.23 %; the training ended early, after step 46\n" in text
    )
    assert "- Calibration: logits are divided by 1.375 for the probabilities; no class changes\n" in text


def test_a_card_shows_the_calibration_error_without_the_temperature_beside_it(run):
    path = run / "evaluate" / "real.json"
    table = content_of(path)
    table["calibration"] |= {"ece": 0.05, "temperature": 2.0, "uncalibrated": table["calibration"] | {"ece": 0.125}}
    reseal(path, table)
    text = card_text(run / "train_saross" / "real" / "student.safetensors", run=run)
    assert "Expected calibration error: 5.00 (12.50 without the temperature)" in text
