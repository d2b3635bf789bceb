"""Reading configurations: every mistake is reported with its remedy; overrides and variables are applied."""

from __future__ import annotations

import os

import pytest

from dakd.config import Config, build_config, dump_config, load_config
from dakd.config.explain import settings


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
    with pytest.raises(ValueError, match="name is the value 'a', not a section"):
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


@pytest.mark.parametrize("text, message", [
    ("seed: true", r"seed: expected whole number >= 0 \(found True\)"),
    ("generate: {size: [64, yes]}", r"generate\.size: expected \[height, width\] in pixels"),
    ("balance: {b: yes}", r"balance\.b: expected "),
    (f"seed: {2**63}", r"seed: must be less than or equal to 9223372036854775807"),
    ("seed: " + "9" * 5000, r"line 2, column 7: the value '9+' cannot be read; quote it if it is text"),
    ("seed: 0x_", r"line 2, column 7: the value '0x_' cannot be read"),
    ("generate: {size: [64000000000, 64]}", r"generate\.size\.0: must be less than or equal to 65536"),
    ("generate: {size: 64x64}", r"in pixels \(found '64x64'\)$"),
    ("train_saross: {training_sets: []}", r"training_sets: expected list of 1 or more words of real, .*\(found \[\]\)"),
    ("train_saross: {training_sets: [real, real]}", r"training_sets: real more than once; expected each set once"),
    ("run_dir: ''", r"run_dir: expected text, not empty"),
    ("run_dir: s3://bucket/x", r"run_dir: 's3://bucket/x' is a URL; expected a path of this machine"),
    ("data: {cache: gs://bucket}", r"data\.cache: 'gs://bucket' is a URL"),
    ("predict: {inputs: ''}", r"predict\.inputs: expected text, not empty"),
    ("train_jointnet: {stage1: {extra_images: ['']}}", r"extra_images: expected text, not empty"),
    ('run_dir: "a\\0b"', r"run_dir: expected text without NUL"),
    ('prepare: {root: "\\ud800"}', r"prepare\.root: expected text without NUL and half characters"),
    ("run_dir: '${NOWHERE'", r"uses '\$\{NOWHERE'; expected a variable, as \$\{NAME\}"),
    ("run_dir: '${HOME:-x}'", r"expected a variable"),
    ("on: 1\nyes: 2", r"the key 'yes' is in line 2 already, written 'on'"),
    ("---\nname: b", r"keep one experiment in the file"),
])  # fmt: skip
def test_values_that_would_be_read_as_something_else_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, f"name: a\n{text}\n"))


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(write(tmp_path, "name: a\nrun_dir: ~/x"), ["generate.gate.student=~/s.safetensors",
                         "train_jointnet.stage1.extra_images=[~/a, b]"])  # fmt: skip
    assert str(config.run_path) == "/home/me/x" and config.generate.gate.student == "/home/me/s.safetensors"
    assert config.train_jointnet.stage1.extra_images == ("/home/me/a", "b")


def test_a_variable_that_is_empty_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ValueError, match=r"uses \$\{EMPTY\}, which is empty; run: export EMPTY="):
        load_config(write(tmp_path, "name: a\nprepare: {dataset: osd, root: '${EMPTY}/osd'}"))


def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ValueError, match="is no regular file; save the YAML"):
        load_config(tmp_path / "pipe.yaml")


def test_a_name_may_look_like_a_number(tmp_path):
    assert load_config(write(tmp_path, "name: 2024")).name == "2024"
    assert load_config(write(tmp_path, "name: 007")).name == "007"
    assert load_config(write(tmp_path, "name: 1.50")).name == "1.50"
    assert "name: must be text (found True" in explain(name=True)
    assert load_config(write(tmp_path, "name: a"), ["name=007"]).name == "007"
    assert 'name: expected text, found a number; give it in quotes: "7" (found 7)' in explain(name=7)
    assert 'name: expected text, found a number; give it in quotes: "1.5"' in explain(name=1.5)
    assert "; did you mean 'unet'? (found 'unett')" in explain(train_saross={"student": {"name": "unett"}})


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".", "..", " ", "a ", "a.", "a\nb", "x" * 300,
                                  "a:b", "CON", "nul.x", "-rf", "~", "a\\b", "a*", ".hidden"])  # fmt: skip
def test_a_name_that_would_leave_the_folder_of_runs_is_refused(name):
    assert "name: expected a folder's name" in explain(name=name)


@pytest.mark.parametrize("b", [0, -1, 5, "much", float("nan"), None, [1]])
def test_b_has_one_error_line(b):
    assert explain(balance={"b": b}) == f'  balance.b: expected "auto" or a number above 0 and at most 4 (found {b!r})'


@pytest.mark.parametrize("value", [0, 1, "much", [0.5], [0.8, 1.2], [0.8, 0.2, 0.1]])
def test_a_share_of_synthetic_samples_has_one_error_line(value):
    wanted = "expected null, a number above 0 and below 1, or a pair of numbers from 0 to 1, such as [0.8, 0.2]"
    text = explain(train_saross={"synthetic_share": value})
    assert text == f"  train_saross.synthetic_share: {wanted} (found {value!r})"


@pytest.mark.parametrize("settings, message", [
    ({"synthetic_share": [1, 1]}, "which leaves no real samples; expected two kinds"),
    ({"synthetic_share": [0, 0]}, "which leaves no synthetic samples; expected two kinds"),
    ({"synthetic_share": [0, 1], "schedule": "synthetic_then_real"}, "expected a number or null with this schedule"),
    ({"init_from": "a", "student": {"pretrained": "b"}}, "init_from is a and student.pretrained b; expected one of"),
])  # fmt: skip
def test_settings_of_a_student_that_contradict_each_other_are_refused(settings, message):
    assert message in explain(train_saross=settings)
    rising = build_config({"name": "a", "train_saross": {"synthetic_share": [0, 1]}})
    assert rising.train_saross.synthetic_share == (0, 1)


@pytest.mark.parametrize("value", [0, -1, 9, "much", [1]])
def test_sigma_data_has_one_error_line(value):
    wanted = f'  train_jointnet.sigma_data: expected null, "auto" or a number above 0 and at most 8 (found {value!r})'
    assert explain(train_jointnet={"sigma_data": value}) == wanted
    for allowed in (None, "auto", 0.12):
        assert build_config({"name": "x", "train_jointnet": {"sigma_data": allowed}})


def test_a_loss_of_the_output_needs_an_output_that_is_not_the_clean_image():
    assert "image_loss is output, and sigma_data None" in explain(train_jointnet={"image_loss": "output"})
    assert build_config({"name": "x", "train_jointnet": {"image_loss": "output", "sigma_data": "auto"}})


@pytest.mark.parametrize("value", ["maybe", -1, None, []])
def test_a_setting_of_several_types_has_one_error_line(value):
    assert explain(generate={"capture": value}) == f"  generate.capture: expected auto, true or false (found {value!r})"


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
        (b"seed: !!timestamp 2024-99-99", "is not valid YAML: line 1, column 7: the value"),
        (b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
    ids=["bytes", "depth", "loop", "growth", "date", "code"],
)
def test_files_made_to_break_a_parser_are_refused(tmp_path, data, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.yaml .*{message}"):
        load_config(path)


@pytest.mark.parametrize("text", ["/data/scenes 2021 #1", "2021-01-01", "0012", "007", "1:30", "1e3", "1.50", "no",
                                  "yes", "None", "~", "[a", "a: b", "*a", "!a", "a=b", "'a", '"', " a"])  # fmt: skip
def test_an_override_of_a_text_setting_is_the_text_that_is_typed(tmp_path, text):
    path = write(tmp_path, "name: a")
    config = load_config(
        path, [f"prepare.root={text}", f"predict.inputs={text}", f"train_saross.engine.deepspeed={text}"]
    )
    assert config.prepare.root == config.predict.inputs == config.train_saross.engine.deepspeed == text
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_null_is_no_text_and_quotation_marks_make_it_one(tmp_path):
    path = write(tmp_path, "name: a\nprepare: {root: r}")
    assert load_config(path, ["prepare.root=null"]).prepare.root is None
    assert load_config(path, ['prepare.root="null"']).prepare.root == "null"
    assert load_config(path, ["name=null"]).name == "null"  # a name cannot be null
    assert load_config(path, ["prepare.root='a b'"]).prepare.root == "a b"


@pytest.mark.parametrize("key, way", [("prepare.root", "write prepare.root=null for none"),
                                      ("seed", "give one, or leave it out for the file's"),
                                      ("name", "give one, or leave it out for the file's")])  # fmt: skip
def test_an_override_without_a_value_is_refused(tmp_path, key, way):
    with pytest.raises(ValueError, match="has no value; ") as caught:
        load_config(write(tmp_path, "name: a"), [f"{key}="])
    assert way in str(caught.value)


@pytest.mark.parametrize("text, meaning", [("no", "true or false"), ("2024", "a number"), ("1.50", "a number"),
                                           ("0x1F", "a number"), ("On", "true or false")])  # fmt: skip
def test_a_files_value_that_yaml_reads_as_no_text_is_to_be_quoted(tmp_path, text, meaning):
    with pytest.raises(ValueError) as caught:
        load_config(write(tmp_path, f"name: a\nprepare:\n  root: {text}\n"))
    wanted = f'prepare.root: must be text (found {text}, which YAML reads as {meaning}; quote it: root: "{text}")'
    assert wanted in str(caught.value)
    assert load_config(write(tmp_path, f'name: a\nprepare:\n  root: "{text}"\n')).prepare.root == text


@pytest.mark.parametrize("text", ["0012", "2021-01-01", "1:30", "1e3"])
def test_dates_and_leading_zeros_are_text_in_a_file(tmp_path, text):
    assert load_config(write(tmp_path, f"name: a\nprepare: {{root: {text}}}")).prepare.root == text
    assert load_config(write(tmp_path, "name: a\nseed: 0012"), ["generate.seed=010"]).seed == 12  # no octal numbers


@pytest.mark.parametrize("text, message", [
    ("name: a\nseed: 1\nseed: 2\n", "line 3, column 1: the key 'seed' is in line 2 already"),
    ("name: a\nbalance:\n  b: 1\n  b: 1\n", "line 4, column 3: the key 'b' is in line 3 already"),
    ("name: a\nprepare: {max_samples: 1, 'max_samples': 1}", "the key 'max_samples' is in line 2 already"),
    ("name: a\nbalance: &a {b: 1, b: 2}\n", "the key 'b' is in line 2 already"),
    ("name: a\nprepare: {<<: {root: r}, <<: {root: s}}", "the key '<<' is in line 2 already"),
    ("name: a\nprepare: {classes: {1: [0, 0, 0], 0x1: [1, 1, 1]}}", "the key '0x1' is in line 2 already"),
])  # fmt: skip
def test_a_key_that_is_there_twice_is_refused_with_both_lines(tmp_path, text, message):
    with pytest.raises(ValueError) as caught:
        load_config(write(tmp_path, text))
    assert message in str(caught.value) and "c.yaml" in str(caught.value)
    with pytest.raises(ValueError, match="the key 'num_test' is in line 1 already"):
        load_config(write(tmp_path, "name: a"), ["prepare.simulation={num_test: 1, num_test: 2}"])


def test_a_merged_key_may_be_overridden(tmp_path):
    text = "name: a\ntrain_saross: {engine: &e {wandb: offline, threads: 2}}\n"
    text += "train_jointnet: {engine: {<<: *e, threads: 3}}"
    config = load_config(write(tmp_path, text))
    assert config.train_jointnet.engine.wandb == "offline" and config.train_jointnet.engine.threads == 3
    assert config.train_saross.engine.threads == 2


def test_an_error_shows_the_value_that_counts_and_not_one_that_it_replaced(tmp_path):
    text = "name: a\ntrain_saross: {engine: &e {deepspeed: d}}\ntrain_jointnet: {engine: {<<: *e, deepspeed: 2024}}"
    with pytest.raises(ValueError, match=r"train_jointnet\.engine\.deepspeed: must be text .found 2024, which YAML"):
        load_config(write(tmp_path, text))
    with pytest.raises(ValueError, match=r"prepare\.root: must be text .found 2024, which YAML reads as a number"):
        load_config(write(tmp_path, "name: a"), ["prepare.root=r", "prepare={dataset: osd, root: 2024}"])


def test_an_override_reaches_one_of_the_places_that_share_an_anchor(tmp_path):
    text = "name: a\ntrain_saross: {engine: &e {threads: 2}}\ntrain_jointnet: {engine: *e}"
    config = load_config(write(tmp_path, text), ["train_saross.engine.threads=5"])
    assert config.train_saross.engine.threads == 5 and config.train_jointnet.engine.threads == 2


def test_an_empty_section_has_the_defaults_of_a_section_that_is_left_out(tmp_path):
    sections = [key for key in Config.model_fields if key not in ("name", "run_dir", "seed")]
    config = load_config(write(tmp_path, "name: a\n" + "".join(f"{key}:\n  # nothing\n" for key in sections)))
    assert config == Config(name="a")
    assert load_config(write(tmp_path, "name: a\ntrain_saross: {optimizer: , engine: }")) == config
    assert load_config(write(tmp_path, "name: a\nprepare:\n"), ["prepare.shard_size=3"]).prepare.shard_size == 3


def test_a_section_keeps_the_defaults_that_it_does_not_name(tmp_path):
    """train_saross.optimizer.lr_decay is poly, though the class of the section says constant."""
    config = load_config(write(tmp_path, "name: a\ntrain_saross: {optimizer: {lr: 1.0e-3}}"))
    assert config.train_saross.optimizer.lr_decay == "poly" and config.train_saross.optimizer.lr == 1e-3
    config = load_config(write(tmp_path, "name: a"), ["train_jointnet.stage3.steps=7"])
    assert config.train_jointnet.stage3.lr == 1e-5 and config.train_jointnet.stage3.steps == 7
    config = load_config(write(tmp_path, "name: a"), ["train_jointnet.stage2.lr=1e-3"])
    assert config.train_jointnet.stage2.steps == 250_000


@pytest.mark.parametrize("override", ["train_saross={steps: 5}", "train_saross.optimizer={lr: 0.01}",
                                      "train_saross={optimizer: {lr: 0.01}}", ("train_saross", {"steps": 5}),
                                      "train_saross={}", "train_saross={optimizer: {}}"])  # fmt: skip
def test_an_override_of_a_section_changes_only_the_settings_that_it_names(tmp_path, override):
    text = "train_saross: {student: {encoder: resnet18}, optimizer: {warmup_steps: 20, ema_decay: 0.99}}"
    path = write(tmp_path, f"name: a\n{text}")
    plain, config = load_config(path).train_saross, load_config(path, [override]).train_saross
    assert config.student == plain.student and config.optimizer.warmup_steps == 20
    assert config.optimizer.ema_decay == 0.99 and config.optimizer.lr_decay == "poly"
    assert (config.steps == 5) == ("steps" in str(override))
    assert (config.optimizer.lr == 0.01) == ("lr" in str(override))
    assert load_config(path, ["train_saross=null"]).train_saross == Config(name="a").train_saross


def test_an_override_that_names_another_kind_replaces_its_section(tmp_path):
    text = "train_saross: {student: {encoder: resnet18, caft_heads: [1, 1, 1]}}\nprepare: {dataset: osd, root: r}"
    path = write(tmp_path, f"name: a\n{text}")
    student = load_config(path, ["train_saross.student={encoder: resnet34}"]).train_saross.student
    assert (student.encoder, student.caft_heads) == ("resnet34", (1, 1, 1))
    assert load_config(path, ["train_saross.student={name: saross}"]).train_saross.student.encoder == "resnet18"
    rival = load_config(path, ["train_saross={student: {name: segformer}}", "train_saross.student={name: segformer}"])
    assert rival.train_saross.student.encoder == "mit_b2"
    assert load_config(path, ["prepare={dataset: simulated}"]).prepare.root is None
    assert load_config(path, ["prepare={dataset: osd, shard_size: 3}"]).prepare.root == "r"
    with pytest.raises(ValueError, match="begin with the defaults") as caught:
        load_config(path, ["train_saross.student.name=segformer"])
    from_defaults = ["train_saross.student=null", "train_saross.student.name=segformer"]
    assert " ".join(from_defaults) in str(caught.value)
    assert load_config(path, from_defaults).train_saross.student.encoder == "mit_b2"


def test_an_override_of_a_section_that_is_written_wrong_names_the_key_and_the_value(tmp_path):
    path = write(tmp_path, "name: a\nbalance: 5\nprepare: {root: r}")
    assert load_config(path, ["balance={b: 0.5}"]).balance.b == 0.5
    with pytest.raises(ValueError, match=r"prepare\.root: must be text .found 2024, which YAML reads as a number"):
        load_config(path, ["balance={}", "prepare={shard_size: 3, root: 2024}"])
    with pytest.raises(ValueError, match=r"prepare\.shard_sise: unknown key; did you mean 'shard_size'"):
        load_config(path, ["balance={}", "prepare={shard_sise: 3}"])
    classes = load_config(path, ["balance={}", "prepare={classes: {a: [0, 0, 0], b: [1, 1, 1]}}",
                                 "prepare={classes: {c: [0, 0, 0], d: [1, 1, 1]}}"]).prepare.classes  # fmt: skip
    assert list(classes) == ["c", "d"]  # a value, not a section


@pytest.mark.parametrize("data, message", [
    (b"name: x\n\tseed: 3", "line 2, column 1: .*indent with spaces"),
    ("name: é".encode("latin1"), r"byte 6 \(0xe9\) is not UTF-8; save the file as UTF-8"),
    (b"\x89PNG\r\n\x1a\n\0\0", "save the file as UTF-8"),
    (b"name: \0", "control character"),
    (b"name: *x", "quote a text that begins with"),
    (b"name: a: b", "line 1, column 8: "),
    (b"# x\n" * 300_000, "has 1200000 bytes; expected YAML of at most"),
    (b"", "holds nothing; expected sections"),
    (b"- 1", "holds a list; expected sections"),
], ids=str)  # fmt: skip
def test_a_file_that_is_no_yaml_is_refused_in_one_line_with_the_place_and_a_remedy(tmp_path, data, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", ["\ufeffname: ä\r\nseed: 3\r\n".encode(), "name: ä\nseed: 3".encode("utf-16")])
def test_files_of_other_editors_are_read(tmp_path, data):
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    assert load_config(path).name == "ä" and load_config(path).seed == 3


@pytest.mark.parametrize("text, message", [
    ("name: a\nprepare:\n\u00a0\u00a0dataset: osd\n", r"'\\xa0\\xa0dataset': .* U\+00A0 NO-BREAK SPACE: write plain"),
    ("name: a\nprepare:\n  data\u200bset: osd\n", r"prepare\.'data\\u200bset': .* U\+200B ZERO WIDTH SPACE: "),
])  # fmt: skip
def test_an_invisible_character_in_a_key_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, text))


WRONG = [None, True, -1, 1.5, "x", [], [1, "a"], {}, {"a": 1}, [[1]], {1: 2}, float("nan")]


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.key)
def test_every_setting_refuses_wrong_values_in_plain_words_and_under_its_own_key(setting):
    foreign = ("valid", "Input", "instance", "dictionary", "tuple", "parse", "integer", "[key]", "literal", "Field",
               "String", "boolean", "function-")  # fmt: skip
    for value in WRONG:
        tree: object = value
        for part in reversed(setting.key.split(".")):
            tree = {part: tree}
        try:
            build_config({"name": "a"} | tree)
        except ValueError as error:
            for line in str(error).splitlines()[1:]:
                own = line.replace(setting.key.rpartition(".")[0], "")  # a section may be called validation
                assert [word for word in foreign if word in own] == [], line
                assert line.strip().startswith(".".join(setting.key.split(".")[:2])), line
                assert "found" in line or "unknown key" in line or "has no" in line or "set " in line, line


def test_solver_spacing_and_steps_that_do_not_go_together_are_refused():
    def refused(**sections):
        with pytest.raises(ValueError) as error:
            build_config({"name": "a", **sections})
        return str(error.value)

    assert "overshoots" in refused(generate={"solver": "dpmpp_2m", "spacing": "leading"})
    assert "heun has no stochastic form" in refused(generate={"solver": "heun", "eta": 1})
    assert "generate.sampling_steps is 1001 with a schedule of 1000" in refused(generate={"sampling_steps": 1001})
    short = {"schedule": {"num_train_timesteps": 40}}
    assert "train_jointnet.engine.sample_steps is 50" in refused(generate={"sampling_steps": 40}, train_jointnet=short)
    assert "did you mean 'dpmpp_2m'" in refused(generate={"solver": "dpmpp2m"})


def test_each_solver_has_a_spacing_of_its_own():
    def spacing(**generate):
        return build_config({"name": "a", "generate": generate}).generate.steps_spacing

    assert spacing() == spacing(solver="ddim") == "leading"
    assert spacing(solver="dpmpp_2m") == spacing(solver="heun") == spacing(solver="ddim", spacing="logsnr") == "logsnr"
