"""The front door: `import dakd` is light, and each of its names does what the README says of it."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import typing
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from front_door import COMPILED
from tiny_students import TINY_STUDENT
from worlds import teacher_file, with_ddpm, with_teacher

import dakd
from dakd.config import StudentConfig
from dakd.data.sample import OSD_CLASSES
from dakd.generate.generate import generate

TINY_UNET = dict(channels=(8, 16), blocks_per_level=1, attention_levels=(), norm_groups=8)


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- light ------------------------------------------------------------------------------------------------------------


def test_importing_dakd_imports_no_torch_and_none_of_its_own_modules():
    new = in_fresh_python("import sys; before = set(sys.modules); import dakd; print(*set(sys.modules) - before)")
    heavy = {"torch", "numpy", "pydantic", "yaml", "PIL", "safetensors", "webdataset", "triton"}
    assert not heavy & set(new.split()) and [name for name in new.split() if name.startswith("dakd")] == ["dakd"]


def test_a_name_brings_its_module_when_it_is_first_used():
    out = in_fresh_python("""
import sys, dakd
print("torch" in sys.modules, sorted(set(dakd.__all__) - set(dir(dakd))))
dakd.ShardSet
print("torch" in sys.modules, "deepspeed" in sys.modules, dakd.ShardSet is dakd.ShardSet)
""")
    assert out.split("\n")[:2] == ["False []", "True False True"]


def test_an_unknown_name_is_an_attribute_error_that_lists_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'load_studnt'; it has .*load_student"):
        dakd.load_studnt  # noqa: B018


def test_every_name_has_a_docstring_and_every_function_types():
    for name in set(dakd.__all__) - {"__version__"}:
        value = getattr(dakd, name)
        assert value.__doc__ and len(value.__doc__) > 30, name
    functions = [getattr(dakd, name) for name in dakd.__all__ if inspect.isfunction(getattr(dakd, name))]
    functions += [dakd.Student.predict, dakd.Student.predict_files, dakd.Student.save, dakd.Teacher.sample]
    for function in functions:
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
        assert all(p.annotation is not p.empty for p in parameters), function
        assert "return" in typing.get_type_hints(function), function  # which evaluates them all


# --- students ---------------------------------------------------------------------------------------------------------


def test_a_student_of_ones_own_is_saved_loaded_and_predicts(tmp_path):
    torch.manual_seed(0)
    net = dakd.create_student(num_classes=2, **TINY_STUDENT).eval()
    classes = dakd.ClassTable(("sea", "oil"), ((0, 0, 0), (0, 255, 255)))
    dakd.Student(net, classes).save(tmp_path / "mine.safetensors")
    student = dakd.load_student(tmp_path / "mine.safetensors")
    assert student.classes == classes and student.device == torch.device("cpu")
    sar = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    result = student.predict(sar)
    assert isinstance(result, dakd.Prediction) and result.label.shape == (40, 50)
    assert (result.probability == dakd.Student(net, classes).predict(sar).probability).all()
    assert result.overlay().size == (50, 40)


def test_a_student_that_carries_no_settings_is_not_saved(tmp_path):
    net = torch.nn.Conv2d(3, 2, 1)
    with pytest.raises(ValueError, match=r"Conv2d carries no settings .*create_student"):
        dakd.Student(net, dakd.ClassTable(("sea", "oil"), ((0, 0, 0), (1, 1, 1)))).save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", typing.get_args(StudentConfig.model_fields["name"].annotation))
def test_every_student_is_created_by_name(name):
    if name == "sam_oil":
        with pytest.raises(ValueError, match="has no SAM"):
            dakd.create_student(name)
        return
    needed = () if name in ("saross", "cbdnet") else ("torchvision", "segmentation_models_pytorch")
    if missing := [package for package in needed if find_spec(package) is None]:
        with pytest.raises(RuntimeError, match=rf"needs the package {missing[0]}, .*\[rivals\]"):
            dakd.create_student(name)
        return
    with torch.device("meta"):
        net = dakd.create_student(name, num_classes=3)
    assert net.num_classes == 3 and net.student_config.name == name


def test_settings_that_make_no_student_are_refused_by_name():
    with pytest.raises(ValueError, match="did you mean 'encoder_options'"):
        dakd.create_student("saross", encoder_option={})
    with pytest.raises(ValueError, match=r"name: .*'unet'.*found 'unett'"):
        dakd.create_student("unett")
    with pytest.raises(ValueError, match=r"sizes of the joint net:\n.*did you mean 'channels'"):
        dakd.create_joint_net(3, channel=(8, 16))


def test_a_joint_net_of_plain_numbers_denoises_both(tmp_path):
    net = dakd.create_joint_net(num_classes=3, **TINY_UNET)
    x_hat, logits = net(torch.randn(2, 1, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([5, 900]))
    assert x_hat.shape == (2, 1, 8, 8) and logits.shape == (2, 3, 8, 8)


# --- teachers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[with_teacher, with_ddpm], ids=["jointnet", "ddpm"])
def config(request, tmp_path):
    return request.param(tmp_path / "run", num_samples=5, shard_size=3, micro_batch=2, seed=4)


def file_of(config):
    ddpm = config.run_path / "train_jointnet" / "ddpm" / "weights_ema.safetensors"
    return ddpm if ddpm.exists() else teacher_file(config)


def facts_of(sample):
    """What a pair is a function of, but for how a set packs its pairs."""
    packing = ("config", "shard_size", "micro_batch", "threads")
    return {key: value for key, value in sample.meta.items() if key not in packing}


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_teacher_samples_the_pairs_of_dakd_generate(config, deterministic):
    cfg = config.generate.model_copy(update={"deterministic": deterministic})
    config = config.model_copy(update={"generate": cfg})
    teacher = dakd.load_teacher(file_of(config))
    threads = torch.get_num_threads()
    same = dict(size=cfg.size, steps=cfg.sampling_steps, seed=4, micro_batch=2, deterministic=deterministic)
    pairs = teacher.sample(5, **same)
    assert torch.get_num_threads() == threads and torch.get_deterministic_debug_mode() == 0
    generated = dakd.ShardSet(generate(config))
    for ours, theirs in zip(pairs, generated, strict=True):
        assert ours.key == theirs.key and facts_of(ours) == facts_of(theirs)
        # Batches cut in another way round otherwise, except where they are padded to one size.
        assert np.abs(ours.sar.astype(int) - theirs.sar).max() <= (0 if deterministic else 1)
        assert np.allclose(ours.soft_label.astype(np.float16), theirs.soft_label, 0, 0 if deterministic else 0.01)
    later = teacher.sample(1, **same, first=4)[0]
    assert later.key == pairs[4].key and np.abs(later.sar.astype(int) - pairs[4].sar).max() <= 1


def test_a_teacher_shows_what_it_samples_with(config):
    teacher = dakd.load_teacher(file_of(config))
    assert teacher.classes.num_classes == 5 and 0 < teacher.b <= 4 and not teacher.net.training
    assert teacher.schedule.num_train_timesteps == 1000 and teacher.device.type == "cpu"
    assert "oil" in repr(teacher) and teacher.size == (256, 256)  # these files name no crop


def test_a_teacher_that_was_changed_says_so_and_is_saved_as_it_is(config, tmp_path, monkeypatch):
    teacher, same = dakd.load_teacher(file_of(config)), dict(size=config.generate.size, steps=2)
    checkpoint = teacher.checkpoint
    assert teacher.sample(1, **same)[0].meta["checkpoint"] == checkpoint == teacher.checkpoint
    with torch.no_grad():
        for parameter in teacher.net.parameters():
            parameter.mul_(1.5)
    changed = teacher.sample(1, **same)[0]
    assert copy.deepcopy(dakd.load_teacher(file_of(config))).checkpoint == checkpoint
    assert pickle.loads(pickle.dumps(teacher)).checkpoint == f"{checkpoint}-changed"
    assert changed.meta["checkpoint"] == f"{checkpoint}-changed"
    teacher.save_pretrained(tmp_path / "changed")
    again = dakd.load_teacher(tmp_path / "changed").sample(1, **same)[0]
    assert np.array_equal(again.soft_label, changed.soft_label)
    # A file that was removed in between is no loss either.
    monkeypatch.chdir(file_of(config).parent)
    of_file = dakd.load_teacher(file_of(config).name)
    monkeypatch.chdir(tmp_path)
    of_file.save_pretrained("a")
    file_of(config).unlink()
    of_file.save_pretrained("b")
    assert dakd.load_teacher("a").sample(1, **same)[0].meta["seed"] == 0
    assert np.array_equal(*(dakd.load_teacher(one).sample(1, **same)[0].soft_label for one in "ab"))


def test_a_teacher_loaded_in_inference_mode_samples(config):
    with torch.inference_mode():
        teacher = dakd.load_teacher(file_of(config))
    assert len(teacher.sample(1, size=config.generate.size, steps=2)) == 1


def test_a_stream_that_is_left_early_gives_torchs_settings_back(config):
    teacher, threads = dakd.load_teacher(file_of(config)), torch.get_num_threads()
    stream = teacher.stream(5, size=config.generate.size, steps=2, deterministic=True, threads=1, micro_batch=2)
    next(stream)
    assert torch.get_num_threads() == threads and torch.get_deterministic_debug_mode() == 0
    stream.close()


def test_pairs_are_written_as_shards_and_read_again(config, tmp_path):
    teacher = dakd.load_teacher(file_of(config))
    same = dict(size=config.generate.size, steps=2)
    dakd.write_shards(tmp_path / "out", teacher.stream(5, **same), teacher.classes, shard_size=2)
    shards = dakd.ShardSet(tmp_path / "out")
    assert len(shards) == 5 and shards.classes == teacher.classes
    assert np.array_equal(shards[3].sar, teacher.sample(4, **same)[3].sar)


def test_impossible_pairs_are_refused_before_anything_is_computed(config):
    teacher = dakd.load_teacher(file_of(config))
    for settings, message in [
        (dict(num=0), "num_samples is 0; expected at least 1"),
        (dict(num=1, step=3), "step: unknown to sample; it takes solver, spacing, eta, micro_batch"),
        (dict(num=1, weights="raw", gate={}), "weights, gate: unknown to sample"),
        (dict(num=1, eta=2), "eta.*found 2"),
        (dict(num="2"), "num_samples is '2'; expected a whole number"),
        (dict(num=1, first=-1), "first is -1"),
        (dict(num=1, first=1.5), "first is 1.5; expected a whole number"),
        (dict(num=1, first=2**63), "first is 9223372036854775808; expected the index of a pair, at most"),
        (dict(num=1, steps=2000), "2000"),
        (dict(num=1, size=(33, 32), steps=2), "multiples of"),
    ]:
        with pytest.raises(ValueError, match=message):
            teacher.sample(**settings)


# --- folders in the hub's form ----------------------------------------------------------------------------------------


def test_a_student_goes_to_a_folder_of_the_hubs_form_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not needed for a local folder
    torch.manual_seed(0)
    classes = dakd.ClassTable(("sea", "oil"), ((0, 0, 0), (0, 255, 255)))
    student = dakd.Student(dakd.create_student(num_classes=2, **TINY_STUDENT).eval(), classes)
    assert student.save_pretrained(tmp_path / "model", licence="apache-2.0") is None
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    card = (tmp_path / "model" / "README.md").read_text()
    assert "license: apache-2.0" in card and "dakd.load_student" in card
    sar = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for again in (
        dakd.Student.from_pretrained(tmp_path / "model", scales=(1.0,)),
        dakd.load_student(tmp_path / "model" / "model.safetensors"),
    ):
        assert np.array_equal(again.predict(sar).probability, student.predict(sar).probability)
    with pytest.raises(ValueError, match="not a teacher of pairs"):
        dakd.Teacher.from_pretrained(tmp_path / "model")
    with pytest.raises(RuntimeError, match=r"owner/name is on the Hugging Face hub.*\[hub\]"):
        dakd.Student.from_pretrained("owner/name")


def test_a_folder_takes_no_argument_of_a_push_that_is_none(tmp_path):
    student = dakd.Student(dakd.create_student(num_classes=5, **TINY_STUDENT), OSD_CLASSES)
    with pytest.raises(TypeError, match=r"found license; give them with push_to_hub=True alone .*`licence`"):
        student.save_pretrained(tmp_path, license="cc-by-4.0")
    assert not list(tmp_path.iterdir())


def test_a_precision_or_device_that_there_is_not_is_refused(config):
    with pytest.raises(ValueError, match="precision is 'fp16'; expected auto, fp32 or bf16"):
        dakd.load_teacher(file_of(config), precision="fp16")
    with pytest.raises(ValueError, match="device is 'tpu0'"):
        dakd.load_teacher(file_of(config), device="tpu0")
    with pytest.raises(ValueError, match="device is 'meta', which this torch does not compute on; use cpu, cuda"):
        dakd.load_teacher(file_of(config), device="meta")


@pytest.mark.parametrize("create", [dakd.create_joint_net, partial(dakd.create_student, "unet"),
                                    partial(dakd.create_student, "saross")])  # fmt: skip
@pytest.mark.parametrize("num_classes", [0, -1, 2.5, "5", None])
def test_a_number_of_classes_that_is_none_is_refused(create, num_classes):
    with pytest.raises(ValueError, match=rf"num_classes is '?{num_classes}'?; expected .*at least 2"):
        create(num_classes=num_classes)


def test_whole_numbers_of_numpy_make_nets_and_pairs(config):
    net = dakd.create_joint_net(num_classes=np.int64(3), **TINY_UNET | {"channels": tuple(np.array([8, 16]))})
    assert net.label_channels == 3
    student = dakd.create_student(num_classes=np.int64(2), **TINY_STUDENT | {"decoder_channels": [*np.full(4, 8)]})
    assert student.num_classes == 2 and student.student_config.decoder_channels == (8, 8, 8, 8)
    teacher, size = dakd.load_teacher(file_of(config)), np.array(config.generate.size)
    made = teacher.sample(np.int64(1), tuple(size), np.int64(2), np.int64(0), first=np.int64(3))
    assert np.array_equal(made[0].sar, teacher.sample(1, config.generate.size, 2, 0, first=3)[0].sar)


def test_a_joint_net_names_a_wrong_number_of_channels():
    net, t = dakd.create_joint_net(num_classes=3, **TINY_UNET), torch.tensor([0])
    for image, label in ((3, 3), (1, 2)):
        with pytest.raises(ValueError, match=rf"x_t has shape \(1, {image}, 8, 8\) .*expected \(B, 1, H, W\)"):
            net(torch.zeros(1, image, 8, 8), torch.zeros(1, label, 8, 8), t)


@pytest.mark.usefixtures("cpu_with_amx")
def test_a_teacher_comes_back_from_a_folder_with_the_same_pairs(config, tmp_path):
    teacher = dakd.load_teacher(file_of(config), precision="bf16")
    teacher.save_pretrained(tmp_path / "model")
    again, same = dakd.Teacher.from_pretrained(tmp_path / "model"), dict(size=config.generate.size, steps=2)
    original = dakd.load_teacher(file_of(config))
    assert np.array_equal(again.sample(2, **same)[1].soft_label, original.sample(2, **same)[1].soft_label)


# --- kernels ----------------------------------------------------------------------------------------------------------

def test_each_kernel_runs_in_a_module_of_ones_own_under_torch_compile():
    lines = in_fresh_python(COMPILED).splitlines()
    assert [line.split()[1:] for line in lines] == 6 * [["True", "True", "function"]], lines
    assert sorted(line.split()[0] for line in lines) == sorted(dakd.kernels.__all__)
