"""Reading configurations: every mistake is reported with its remedy; overrides and variables are applied."""

from __future__ import annotations

import pytest

from dakd.config import Config, build_config, dump_config, load_config


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_overrides_replace_values_of_the_file(tmp_path):
    path = write(tmp_path, "name: a\ntrain_jointnet: {stage1: {steps: 5}}\n")
    config = load_config(path, ["train_jointnet.stage1.steps=7", "generate.size=[32, 64]", "balance.b=0.528"])
    assert config.train_jointnet.stage1.steps == 7
    assert config.generate.size == (32, 64) and config.balance.b == 0.528


def test_unknown_key_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(ValueError, match=r"train_jointnet.unet.chanels: unknown key; did you mean 'channels'"):
        load_config(write(tmp_path, "name: a\ntrain_jointnet: {unet: {chanels: [8]}}"))


def test_all_mistakes_are_reported_at_once(tmp_path):
    text = "name: a\nseed: -1\nprepare: {dataset: osd}\ngenerate: {eta: 2}\n"
    with pytest.raises(ValueError) as caught:
        load_config(write(tmp_path, text))
    for part in ("seed", "prepare.root", "generate.eta", "found -1"):
        assert part in str(caught.value)


def test_variables_come_from_the_environment(tmp_path, monkeypatch):
    path = write(tmp_path, "name: a\nprepare: {dataset: osd, root: '${SAR_HERE}/osd'}\n")
    monkeypatch.delenv("SAR_HERE", raising=False)
    with pytest.raises(ValueError, match="export SAR_HERE="):
        load_config(path)
    monkeypatch.setenv("SAR_HERE", "/data")
    assert load_config(path).prepare.root == "/data/osd"


@pytest.mark.parametrize("text", ["[1, 2]", "name: [", ""])
def test_files_that_are_no_mapping_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"c.yaml"):
        load_config(write(tmp_path, text))


def test_absent_file_and_malformed_override_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no configuration at"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"section\.key=value"):
        load_config(write(tmp_path, "name: a"), ["generate.size"])
    with pytest.raises(ValueError, match="is a value, not a section"):
        load_config(write(tmp_path, "name: a"), ["name.x=3"])


def test_resolved_configuration_reads_back_as_itself(tmp_path):
    config = build_config({"name": "a", "balance": {"b": 0.4}})
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_defaults_are_the_papers_values():
    config = Config(name="a")
    teacher, student = config.train_jointnet, config.train_saross
    assert (teacher.stage1.steps, teacher.stage2.steps, teacher.stage3.steps) == (50_000, 250_000, 100_000)
    assert teacher.global_batch == 32 and teacher.schedule.num_train_timesteps == 1000
    assert config.generate.num_samples == 4480 and config.generate.sampling_steps == 200 and config.generate.eta == 0
    assert student.epochs == 200 and student.global_batch == 16 and student.student.encoder == "mamba_vision_b"


def test_a_bare_off_turns_wandb_off(tmp_path):
    path = write(tmp_path, "name: a\ntrain_saross: {engine: {wandb: off}}\n")
    config = load_config(path, ["train_jointnet.engine.wandb=off"])
    assert config.train_jointnet.engine.wandb == config.train_saross.engine.wandb == "off"
    with pytest.raises(ValueError, match=r"engine\.wandb: must be 'off', 'auto', 'online' or 'offline'"):
        load_config(path, ["train_jointnet.engine.wandb=on"])


def explain(**tree) -> str:
    with pytest.raises(ValueError) as caught:
        build_config({"name": "a"} | tree)
    return str(caught.value).partition("\n")[2]


def test_an_override_that_is_no_yaml_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"override 'generate.size=\[1, 2': the value is not valid YAML"):
        load_config(write(tmp_path, "name: a"), ["generate.size=[1, 2"])
    with pytest.raises(ValueError, match="is a folder; give the YAML file"):
        load_config(tmp_path)


def test_a_name_may_look_like_a_number(tmp_path):
    assert load_config(write(tmp_path, "name: 2024")).name == "2024"
    assert "name: must be a valid string" in explain(name=True)
    assert "; did you mean 'unet'? (found 'unett')" in explain(train_saross={"student": {"name": "unett"}})


@pytest.mark.parametrize("b", [0, -1, 5, "much", float("nan"), None, [1]])
def test_b_has_one_error_line(b):
    assert explain(balance={"b": b}) == f'  balance.b: expected "auto" or a number above 0 and at most 4 (found {b!r})'


@pytest.mark.parametrize("value", [0, -1, 9, "much", [1]])
def test_sigma_data_has_one_error_line(value):
    wanted = f'  train_jointnet.sigma_data: expected null, "auto" or a number above 0 and at most 8 (found {value!r})'
    assert explain(train_jointnet={"sigma_data": value}) == wanted
    for allowed in (None, "auto", 0.12):
        assert build_config({"name": "x", "train_jointnet": {"sigma_data": allowed}})


def test_errors_of_a_section_do_not_print_it():
    wanted = "  prepare: dataset 'osd' has no root; set prepare.root to its folder"
    assert explain(prepare={"dataset": "osd", "max_samples": 3}) == wanted


def test_colours_and_scene_sizes_have_bounds():
    assert "prepare.classes.oil.1" in explain(
        prepare={"dataset": "folder", "root": "r", "classes": {"oil": (0, 256, 0)}}
    )
    assert "prepare.simulation.size.0" in explain(prepare={"simulation": {"size": (7, 8)}})
    build_config({"name": "a", "prepare": {"simulation": {"size": (8, 8)}}})


# Every line holds the one above it twice.
DOUBLING = b"a: &a [x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (i, i, i - 1, i - 1) for i in b"bcdefghijklmnop")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"name: \xff", "is not valid YAML"),
        (b"[" * 5000, "nests too deeply"),
        (b"a: &a [*a]", "an alias .* leads into itself"),
        (DOUBLING, "unfolds"),
        (b"seed: 2024-99-99", "is not valid YAML: month"),
        (b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
    ids=["bytes", "depth", "loop", "growth", "date", "code"],
)
def test_files_made_to_break_a_parser_are_refused(tmp_path, data, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.yaml .*{message}"):
        load_config(path)
