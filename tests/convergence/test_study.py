"""The whole study with an untrained teacher: its numbers, its files, a repeated call, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from evaluate_worlds import scene, write_set
from PIL import Image
from worlds import teacher_file, with_teacher

from dakd.cli import main
from dakd.config import load_config
from dakd.convergence import study, sweep
from dakd.convergence.record import GENERATE, REFERENCE_FILE, RESULTS, open_record
from dakd.convergence.settings import Setting, candidates
from dakd.convergence.study import measure_convergence
from dakd.generate.teacher import Teacher
from dakd.runtime.files import write_text
from dakd.runtime.sealed import read_json
from dakd.runtime.tensor_files import load_state

SMALL = {
    "num": 6,
    "size": (32, 32),
    "seed": 3,
    "calls": (3, 6),
    "reference_steps": 6,
    "micro_batch": 4,
    "device": "cpu",
}
LOOSE = {"agreement": 0.0, "rms": 2.0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_file(with_teacher(tmp_path_factory.mktemp("teacher") / "run"))


@pytest.fixture(scope="module")
def measured(teacher, tmp_path_factory):
    """The folder of a study in which every setting is within tolerance; not to be changed."""
    folder = tmp_path_factory.mktemp("measured") / "out"
    assert measure_convergence(teacher, folder, **SMALL, **LOOSE)
    return folder


@pytest.fixture
def copied(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "copied")


@pytest.fixture
def counted(monkeypatch) -> list[Setting]:
    """The settings that are sampled."""
    sampled, sample = [], sweep.sample_pairs
    for module in (sweep, study, "dakd.convergence.sheet"):
        target = f"{module}.sample_pairs" if isinstance(module, str) else f"{module.__name__}.sample_pairs"
        monkeypatch.setattr(target, lambda one, setting, start: sampled.append(setting) or sample(one, setting, start))
    return sampled


def row_of(folder, setting: Setting) -> dict:
    return open_record(folder, read_json(folder / "convergence.json")["made_with"], overwrite=False).row(setting)


def test_the_numbers_are_those_of_the_teachers_own_samples(teacher, measured):
    """Greys of `Teacher.sample` are rounded to 1/127.5: an RMS of at most 0.0046 more or less."""
    reference = row_of(measured, Setting("ddim", "leading", 6))
    assert (reference["rms"], reference["agreement"], reference["miou"], reference["kl"]) == (0.0, 1.0, 1.0, 0.0)
    assert {value for value in reference["physics"].values() if value is not None} == {0.0}
    found, own = row_of(measured, Setting("heun", "logsnr", 4)), Teacher(teacher, "cpu")
    ours = own.sample(6, (32, 32), 4, 3, solver="heun", micro_batch=4)
    theirs = own.sample(6, (32, 32), 6, 3, micro_batch=4)
    greys = np.array([[one.sar for one in pairs] for pairs in (ours, theirs)], np.float64) / 127.5
    labels = np.array([[one.soft_label.argmax(axis=0) for one in pairs] for pairs in (ours, theirs)])
    assert found["calls"] == 6 and found["rms"] > 0
    assert found["rms"] == pytest.approx(np.sqrt(np.mean((greys[0] - greys[1]) ** 2)), abs=0.0046)
    assert found["agreement"] == (labels[0] == labels[1]).mean() < 1


def test_the_fine_solution_and_the_halves_are_of_the_reference(measured):
    record = read_json(measured / "convergence.json")
    kept = load_state(measured / REFERENCE_FILE)
    assert record["fine"]["rms"] == pytest.approx(float((kept["image"] - kept["fine_image"]).square().mean().sqrt()))
    assert row_of(measured, Setting("dpmpp_2m", "trailing", 6))["fine"]["rms"] == 0.0
    assert record["halves"]["num_images"] == {"real": 6, "synthetic": 6} and record["real"] is None
    greys = record["halves"]["measures"]["greys"]
    assert record["bounds"]["greys"]["largest"] == greys["yardstick"] > 0


def test_the_section_that_is_written_is_the_cheapest_setting_and_an_experiment_takes_it(measured, tmp_path):
    record = read_json(measured / "convergence.json")
    chosen, within = record["chosen"], [one for one in record["judged"] if one["within"]]
    assert {one["calls"] for one in within} >= {6}
    assert Setting(**chosen).num_calls == min(one["calls"] for one in within)
    section = (measured / GENERATE).read_text()
    write_text(tmp_path / "mine.yaml", f"name: mine\nprepare: {{dataset: simulated}}\n{section}")
    cfg = load_config(tmp_path / "mine.yaml").generate
    assert (cfg.solver, cfg.spacing, cfg.sampling_steps) == tuple(chosen.values())
    assert main(["config", "show", str(tmp_path / "mine.yaml"), *Setting(**chosen).overrides.split()]) == 0


def test_without_a_setting_within_tolerance_there_is_no_section_and_the_nearest_is_named(teacher, copied, capsys):
    argv = ["sample", "--teacher", str(teacher), "--convergence", "--out", str(copied), "--num", "6", "--seed", "3"]
    argv += ["--size", "32", "32", "--reference-steps", "6", "--micro-batch", "4", "--device", "cpu"]
    argv += ["--agreement", "0", "--rms"]
    assert main([*argv, "2", "--calls", "3", "6"]) == 0 and (copied / GENERATE).exists()
    assert "Cheapest within tolerance: " in capsys.readouterr().out
    assert main([*argv, "0", "--calls", "3"]) == 1
    printed = capsys.readouterr().out
    record = read_json(copied / "convergence.json")
    nearest = min((row for row in record["measured"] if row["calls"] == 3), key=lambda row: row["rms"])
    assert record["chosen"] is None and not (copied / GENERATE).exists()
    assert "No setting is within tolerance" in printed and f"RMS {nearest['rms']:.4f}" in printed


def test_a_repeated_call_samples_only_what_is_lacking(teacher, copied, counted):
    before = (copied / "convergence.json").read_bytes()
    assert measure_convergence(teacher, copied, **SMALL, **LOOSE) and counted == []
    assert (copied / "convergence.json").read_bytes() == before
    measure_convergence(teacher, copied, **SMALL | {"calls": (3, 5)}, **LOOSE)
    lacking = candidates([5])
    assert counted[:6] == lacking and {one.num_calls for one in counted[6:]} <= {2, 3, 5}, "then those of the sheet"


def test_a_kill_loses_one_setting_at_most(teacher, tmp_path, monkeypatch, counted):
    done = []

    def measure_two(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args[-1])
        return whole(*args)

    whole = study._measure
    with monkeypatch.context() as patch:
        patch.setattr(study, "_measure", measure_two)
        with pytest.raises(KeyboardInterrupt):
            measure_convergence(teacher, tmp_path, **SMALL)
    counted.clear()
    measure_convergence(teacher, tmp_path, **SMALL)
    lacking = [one for one in candidates(SMALL["calls"]) if one not in done]
    assert counted[: len(lacking)] == lacking, "neither the reference nor the two settings are sampled again"


def test_the_sheet_has_the_reference_the_setting_and_leading_ddim(measured):
    record = read_json(measured / "convergence.json")
    chosen = Setting(**record["chosen"])
    titles = ["reference: ddim, leading, 6 steps", str(chosen), f"ddim, leading, {chosen.num_calls} steps"]
    assert record["sheet"] == list(dict.fromkeys(titles))
    sheet = np.asarray(Image.open(measured / "contact_sheet.png"))
    image = load_state(measured / REFERENCE_FILE)["image"][0]
    grey = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    scale = 128 // grey.shape[1]
    # Below a title of 16 pixels and a gap of 4.
    shown = sheet[20 : 20 + 128 : scale, 4 : 4 + 128 : scale, 0]
    assert (shown == grey).all()


def test_the_page_holds_both_charts_the_table_and_the_sheet(measured):
    page = (measured / "convergence.html").read_text()
    assert page.count("<svg") == 2 and "calls of the net" in page and page.count("data:image/png;base64") == 1
    row = row_of(measured, Setting("dpmpp_2m", "logsnr", 3))
    assert f"<td>{row['rms']:.4f}</td>" in page.replace(' class="best"', "")
    assert "http" not in page.replace("http://www.w3.org", "")


def test_real_images_decide_the_physics_where_they_are_given(teacher, tmp_path):
    write_set(tmp_path / "real", [scene(f"real-{i}", i, size=(32, 32)) for i in range(12)])
    measure_convergence(teacher, tmp_path / "out", **SMALL | {"num": 10, "calls": (6,)}, real=tmp_path / "real")
    record = read_json(tmp_path / "out" / "convergence.json")
    measures = record["real"]["measures"]
    assert record["bounds"]["spectrum"]["largest"] == measures["spectrum"]["high"] > 0
    reference = row_of(tmp_path / "out", Setting("ddim", "leading", 6))
    assert reference["real"]["spectrum"] == pytest.approx(measures["spectrum"]["distance"], rel=1e-5)
    own = [one for one in record["judged"] if one["calls"] == 6 and one["spacing"] == "leading"]
    assert [(one["beyond"], one["within"]) for one in own] == [([], True)], "the reference is within its own interval"


@pytest.mark.parametrize("settings, message", [
    ({"num": 3}, "--num is 3; expected at least 4 pairs, as two halves are compared"),
    ({"calls": (4, 1001)}, "--calls is 1001 with a schedule of 1000 timesteps"),
    ({"reference_steps": 1001}, "--reference-steps is 1001 with a schedule of 1000 timesteps"),
    ({"rms": -1.0}, "--rms is -1"),
], ids=str)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_anything_is_sampled(settings, message, teacher, tmp_path, counted):
    with pytest.raises(ValueError, match=message):
        measure_convergence(teacher, tmp_path, **SMALL | settings)
    assert counted == [] and list(tmp_path.iterdir()) == []


def test_real_images_need_enough_pairs_and_images_and_the_teachers_classes(teacher, tmp_path, counted):
    few = write_set(tmp_path / "few", [scene(f"{i}", i) for i in range(4)]).folder
    with pytest.raises(ValueError, match="--num is 6; expected at least 10 pairs, as intervals need"):
        measure_convergence(teacher, tmp_path / "out", **SMALL, real=few)
    with pytest.raises(ValueError, match="few has 4 images; expected at least 10"):
        measure_convergence(teacher, tmp_path / "out", **SMALL | {"num": 10}, real=few)
    assert counted == [] and not (tmp_path / "out").exists()


def test_numbers_of_other_settings_are_not_mixed_unless_they_are_to_be_replaced(teacher, copied, counted):
    before = (copied / "convergence.json").read_bytes()
    with pytest.raises(ValueError, match="was measured with seed 3, now 4; measure again with --overwrite"):
        measure_convergence(teacher, copied, **SMALL | {"seed": 4})
    assert (copied / "convergence.json").read_bytes() == before
    measure_convergence(teacher, copied, **SMALL | {"seed": 4, "calls": (3,)}, overwrite=True)
    assert read_json(copied / "convergence.json")["made_with"]["seed"] == 4 and len(counted) >= 2 + 6


def test_a_changed_record_is_refused_and_can_be_overwritten(teacher, copied):
    path = copied / "convergence.json"
    path.write_text(path.read_text().replace('"agreement": ', '"agreement":  ', 1))
    with pytest.raises(ValueError, match=r"convergence.json has changed .* measure again with --overwrite"):
        measure_convergence(teacher, copied, **SMALL)
    (copied / REFERENCE_FILE).write_bytes(b"not tensors")
    measure_convergence(teacher, copied, **SMALL | {"calls": (3,)}, overwrite=True)
    assert json.loads(path.read_text())["made_with"]["num"] == 6


@pytest.mark.parametrize("name", [*RESULTS[1:], "index.json"])
def test_files_of_others_are_not_written_over(name, teacher, tmp_path):
    write_text(tmp_path / name, "of another")
    with pytest.raises(ValueError, match=f"{name} is there already, and no convergence.json that it belongs to"):
        measure_convergence(teacher, tmp_path, **SMALL)
    if name == "index.json":
        with pytest.raises(ValueError, match=r"index\.json is there already"):
            measure_convergence(teacher, tmp_path, **SMALL, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "of another"


@pytest.mark.parametrize("argv, message", [
    (["--convergence", "--png"], "leave out --png"), (["--convergence", "--solver", "ddim"], "leave out --solver"),
    (["--convergence", "--steps", "9", "--eta", "0.5"], "leave out --steps, --eta"),
    (["--calls", "9"], "--calls: only with --convergence"),
    (["--real", "d", "--rms", "1"], "--rms, --real: only with --convergence"),
    (["--convergence", "--calls", "0"], "found 0, expected at least 1"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["sample", "--teacher", "t", "--out", "o", *argv])
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_the_precision_that_is_asked_for_is_that_of_the_samples(teacher, tmp_path, monkeypatch, capsys):
    argv = ["sample", "--teacher", str(teacher), "--out", str(tmp_path / "out"), "--convergence", "--precision", "bf16"]
    monkeypatch.setattr("dakd.runtime.precision.cpu_bf16", lambda: "")
    assert main(argv) == 1 and "bf16, and this CPU has no instructions for bf16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("dakd.runtime.precision.cpu_bf16", lambda: "AMX")
    main([*argv, "--num", "4", "--size", "16", "16", "--calls", "2", "--reference-steps", "3"])
    assert json.loads((tmp_path / "out" / "convergence.json").read_text())["made_with"]["precision"] == "bfloat16"
