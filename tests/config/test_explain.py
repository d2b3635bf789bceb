"""Every setting has its meaning, and the texts about settings name all of them as the models have them."""

from __future__ import annotations

import pytest
import yaml

from dakd.config import Config, Section, build_config, load_config
from dakd.config.explain import REQUIRED, WIDTH, Setting, difference, explain, format_difference, help_table, settings


def flat(tree: dict, maps: set[str], prefix: str = "") -> dict:
    """The leaves of a dumped experiment by dotted key; `maps` are leaves too."""
    leaves = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        leaves |= flat(value, maps, f"{key}.") if isinstance(value, dict) and key not in maps else {key: value}
    return leaves


MAPS = {"prepare.classes", "generate.gate.areas", "generate.gate.quotas", "train_saross.student.encoder_options",
        "train_saross.student.sam_oil.sam_config"}  # fmt: skip


def leaves(config: Config) -> dict:
    return flat(config.model_dump(mode="json"), MAPS)


def without_meaning(listed: list[Setting]) -> list[str]:
    return [one.key for one in listed if one.meaning.strip(" .") in ("", one.key, one.key.split(".")[-1])]


def sections_of(base: type[Section]) -> list[type[Section]]:
    return [one for direct in base.__subclasses__() for one in (direct, *sections_of(direct))]


def fields_without_description(model: type[Section]) -> list[str]:
    """The settings of a section without a docstring; a section in it may have that of its class instead."""
    return [
        name for name, field in model.model_fields.items() if not field.description and not is_section(field.annotation)
    ]


def is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def test_every_leaf_is_listed_once_in_order():
    assert [one.key for one in settings()] == list(leaves(Config(name="x")))


def test_every_setting_has_a_meaning_on_one_line(monkeypatch):
    assert without_meaning(settings()) == []
    for one in settings():
        assert one.meaning == one.meaning.strip() and "\n" not in one.meaning and "  " not in one.meaning
        assert one.meaning.endswith("."), one.key
    monkeypatch.setattr(Config.model_fields["run_dir"], "description", None)
    assert without_meaning(settings()) == ["run_dir"]


def test_every_section_describes_its_fields():
    named = [one for one in sections_of(Section) if one.__module__.startswith("dakd.config.")]
    assert len(named) > 20
    for model in named:
        assert fields_without_description(model) == [], model
        assert model.__doc__ and model.__doc__.strip()


class Invented(Section):
    """A section with one field that nobody described."""

    described: int = 1
    """Number of things."""

    bare: int = 1


class Heir(Invented):
    """Its inherited field keeps the meaning; the replaced one has a new one."""

    bare: int = 2
    """Number of other things."""


def test_a_field_without_docstring_would_be_seen():
    assert fields_without_description(Invented) == ["bare"]
    assert fields_without_description(Heir) == []
    assert Heir.model_fields["described"].description == "Number of things."


def test_defaults_read_back_as_the_models_defaults():
    expected = leaves(Config(name="x"))
    listed = {one.key: one.default for one in settings()}
    assert listed.pop("name") == REQUIRED and expected.pop("name") == "x"
    assert {key: yaml.safe_load(text) for key, text in listed.items()} == expected
    tree = {"name": "x"}
    for key, text in listed.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = yaml.safe_load(text)
    assert build_config(tree) == Config(name="x")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("name", "text, not empty"),
        ("prepare.mask_threshold", "whole number in [1, 255]"),
        ("prepare.sensor", "one of palsar, sentinel or null"),
        ("prepare.classes", "map of names to lists of 3 whole numbers in [0, 255] or null"),
        ("prepare.resize", "[height, width] in pixels or null"),
        ("prepare.simulation.size", "[height, width] in pixels, each >= 8"),
        ("balance.b", "auto or number in (0, 4]"),
        ("train_jointnet.sigma_data", "auto, number in (0, 8] or null"),
        ("train_jointnet.stage1.steps", "whole number > 0"),
        ("train_jointnet.stage1.streams", "list of texts matching ^pipe:."),
        ("train_jointnet.optimizer.ema_decay", "number in [0, 1)"),
        ("train_saross.student.caft_heads", "list of 3 whole numbers > 0"),
        ("generate.capture", "auto, true or false"),
        ("generate.gate.areas", "map of names to {at_least, at_most}"),
        ("generate.gate.entropy.at_least", "number or null"),
        ("generate.gate.agreement.at_least", "number in [0, 1] or null"),
        ("train_saross.student.encoder_options", "map of names to values"),
        ("train_saross.training_sets", "list of 1 or more words of real, real+synthetic, synthetic, "
         "real+pseudo, real+synthetic+pseudo"),
        ("evaluate.scales", "list of 1 or more numbers in (0, 8]"),
        ("predict.training_set",
         "one of real, real+synthetic, synthetic, real+pseudo, real+synthetic+pseudo or null"),
    ],
)
def test_types_are_said_in_words(key, kind):
    (setting,) = settings(key)
    assert setting.kind == kind


def test_defaults_are_those_of_the_experiments_sections():
    found = {one.key: one.default for one in settings("train_saross")}
    assert found["train_saross.optimizer.lr_decay"] == "poly" and found["train_saross.optimizer.warmup_steps"] == "500"
    assert found["train_saross.student.encoder"] == "mamba_vision_b"
    assert {one.default for one in settings("train_jointnet.stage3.lr")} == {"1.0e-05"}


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("stage1.steps", "did you mean train_jointnet.stage1.steps?"),
        ("train_jointnet.stag1.steps", "did you mean train_jointnet.stage1.steps, train_jointnet.stage2.steps or"),
        ("sigma_data", "did you mean train_jointnet.sigma_data?"),
        ("sigma_dat", "did you mean train_jointnet.sigma_data?"),
        ("train_jointnt", "did you mean train_jointnet?"),
        ("train_saross.studnet.encodr", "did you mean train_saross.student.encoder?"),
        ("generate.gate.areas.oil", "did you mean generate.gate.areas?"),
        ("lr", "train_jointnet.stage1.lr"),
        ("zzz", "sections and settings at the top: name, run_dir, seed, prepare"),
        (".", "sections and settings at the top"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(key, hint):
    for function in (explain, settings, lambda one: help_table([one])):
        with pytest.raises(ValueError) as caught:
            function(key)
        assert f"no setting or section is called {key!r}; " in str(caught.value) and hint in str(caught.value)


def test_explain_names_type_default_meaning_and_value():
    key = "train_jointnet.sigma_data"
    lines = explain(key).splitlines()
    (setting,) = settings(key)
    assert lines[0] == key and lines[-2:] == [f"  type:     {setting.kind}", "  default:  null"]
    assert " ".join(" ".join(lines[1:-2]).split()) == setting.meaning
    assert explain(key, load_config("demo")).splitlines() == [*lines, "  value:    auto (experiment demo)"]


def test_explain_of_a_section_has_its_docstring_and_all_its_settings():
    text = explain("train_jointnet.unet", load_config("demo"))
    assert text.startswith("train_jointnet.unet: One branch of the teacher.\nThe default is the usual")
    assert "train_jointnet.unet.blocks_per_level = 2, value 1 (whole number > 0)" in text
    assert "train_jointnet.unet.norm_groups = 32 (whole number > 0)" in explain("train_jointnet.unet")
    assert "sea is what remains" in explain("prepare.simulation")
    assert all(f"  {one.key} = " in explain("") for one in settings())


def test_difference_lists_exactly_what_differs():
    demo, other = load_config("demo"), load_config("smoke")
    a, b = leaves(demo), leaves(other)
    assert difference(demo, other) == [(key, a[key], b[key]) for key in a if a[key] != b[key]]
    assert difference(demo, demo) == []


def test_a_table_of_differences_is_aligned():
    demo, other = load_config("demo"), load_config("smoke")
    found = difference(demo, other)
    lines = format_difference(found, "demo", "smoke").splitlines()
    column, second = lines[0].index("demo"), lines[0].index("smoke")
    assert lines[0].split() == ["setting", "demo", "smoke"]
    assert {line[column - 2 : column] for line in lines} == {"  "}
    keys = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert keys == [key for key, _, _ in found]
    continued = [line for line in lines if line.startswith(" ")]
    assert all(not line[:second].strip() and line[second] != " " for line in continued)
    assert format_difference([], "demo", "demo") == "no settings differ"


def test_the_help_table_names_every_setting_of_its_prefixes():
    prefixes = ["prepare", "data", "train_saross.loss", "seed"]
    text = help_table(prefixes)
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] != " "]
    assert sorted(shown) == sorted(one.key for prefix in prefixes for one in settings(prefix))
    assert max(map(len, text.splitlines())) <= WIDTH
    for one in settings("data"):
        assert f"  {one.key} = {one.default} (" in text
        assert one.meaning in " ".join(text.split())
