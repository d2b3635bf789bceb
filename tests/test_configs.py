"""Every YAML that comes with dakd is valid, and the paper's experiments have the paper's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dakd.config import EngineConfig, OptimizerConfig, load_config
from dakd.pipeline import fitting_processes
from dakd.train.zero import deepspeed_config, fitting_micro_batch, zero_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture(autouse=True)
def roots(monkeypatch):
    for name in ("OSD_ROOT", "SOS_ROOT", "DAKD_REAL_DATA"):
        monkeypatch.setenv(name, "/somewhere")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_config_is_valid_and_named_like_its_file(path):
    assert load_config(path).name == path.stem


@pytest.mark.parametrize(
    "name, b, steps, num_samples",
    [
        ("osd", 0.528, (50_000, 250_000, 100_000), 4480),
        ("sos_alos", 0.447, (50_000, 150_000, 50_000), 3101),
        ("sos_sentinel", 0.466, (50_000, 150_000, 50_000), 3354),
    ],
)
def test_paper_configs_have_the_papers_numbers(name, b, steps, num_samples):
    config = load_config(CONFIGS / f"{name}.yaml")
    teacher, student = config.train_jointnet, config.train_saross
    assert config.balance.b == b
    assert (teacher.stage1.steps, teacher.stage2.steps, teacher.stage3.steps) == steps
    assert teacher.crop == (256, 256) and teacher.global_batch == 32
    assert config.generate.num_samples == num_samples and config.generate.sampling_steps == 200
    assert student.epochs == 200 and student.global_batch == 16 and student.student.encoder == "mamba_vision_b"
    assert student.crop == ((512, 512) if name == "osd" else (256, 256)) and student.mosaic == (name == "osd")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_config_runs_on_one_to_eight_processes(path):
    config = load_config(path)
    for world in (1, 2, 4, 8):
        for section in (config.train_jointnet, config.train_saross):
            if section.global_batch % world == 0:
                size = fitting_micro_batch(section.global_batch, section.micro_batch, world)
                assert section.global_batch % (size * world) == 0
        assert fitting_processes(config, world) == min(world, 4 if path.stem == "smoke" else world)


@pytest.mark.parametrize("path", sorted((CONFIGS / "deepspeed").glob("*.json")), ids=lambda path: path.name)
def test_deepspeed_files_hold_zero_and_offload_only(path):
    stage = zero_config(str(path))["zero_optimization"]["stage"]
    assert path.name.startswith(f"zero{stage}")
    assert ("offload_optimizer" in json.loads(path.read_text())["zero_optimization"]) == ("offload" in path.name)


def test_zero_files_are_found_by_name_and_a_wrong_name_is_refused_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("zero2", "zero2.json", "configs/deepspeed/zero2.json"):
        assert zero_config(name)["zero_optimization"]["stage"] == 2
    with pytest.raises(ValueError, match=r"no DeepSpeed configuration at zero4; did you mean 'zero"):
        zero_config("zero4")


def test_the_buffers_of_gradients_are_as_large_as_the_net_unless_the_file_says_otherwise(tmp_path):
    def bucket(num_trained, **file):
        engine = EngineConfig(**file)
        return deepspeed_config(engine, OptimizerConfig(), "fp32", 2, 1, num_trained)["zero_optimization"]

    assert bucket(1234)["reduce_bucket_size"] == 1234
    assert bucket(10**9)["reduce_bucket_size"] == 500_000_000  # DeepSpeed's own limit
    path = tmp_path / "z.json"
    path.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 77}}')
    assert bucket(1234, deepspeed=str(path)) == {"stage": 2, "reduce_bucket_size": 77}


def test_zero_file_with_other_settings_is_refused(tmp_path):
    path = tmp_path / "z.json"
    path.write_text('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}')
    with pytest.raises(ValueError, match="bf16"):
        zero_config(str(path))
