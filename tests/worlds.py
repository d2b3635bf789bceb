"""What tests run on several processes, importable by name in a new process; and the toy experiments they share."""

from __future__ import annotations

from pathlib import Path

from dakd.config import Config, build_config


def toy_config(run_dir: Path, **train: object) -> Config:
    """Every step at the smallest size that is still all of it; `train` replaces settings of train_jointnet."""
    optimizer = {"lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9}
    engine = {"num_workers": 0, "log_every": 1, "checkpoint_every": 2, "sample_every": 0, "wandb": "off", "threads": 1}
    teacher = {
        "unet": {"channels": [8, 16], "blocks_per_level": 1, "attention_levels": [1], "norm_groups": 4},
        "crop": [16, 16],
        "global_batch": 4,
        "micro_batch": 2,
        "optimizer": optimizer,
        "engine": engine,
        "stage1": {"steps": 4, "lr": 1e-3},
        "stage2": {"steps": 4, "lr": 1e-3},
        "stage3": {"steps": 4, "lr": 1e-3},
    }
    options = {
        "dim": 8, "in_dim": 8, "depths": [1, 1, 2, 2], "num_heads": [1, 1, 2, 4], "window_size": [4, 4, 2, 2],
        "drop_path": 0.2,
    }  # fmt: skip
    student = {
        "student": {
            "encoder": "mamba_vision",
            "encoder_options": options,
            "decoder_channels": [16, 16, 16, 8],
            "caft_heads": [1, 1, 1],
        },
        "training_sets": ["real", "real+synthetic"],
        "crop": [64, 64],
        "mosaic": False,
        "global_batch": 4,
        "micro_batch": 2,
        "steps": 4,
        "optimizer": optimizer,
        "engine": engine,
    }
    return build_config(
        {
            "name": "toy",
            "run_dir": str(run_dir),
            "seed": 3,
            "prepare": {"simulation": {"num_train": 12, "num_test": 4, "size": [32, 32]}, "shard_size": 5},
            "train_jointnet": teacher | train,
            "generate": {"num_samples": 7, "size": [16, 16], "sampling_steps": 3, "micro_batch": 2, "shard_size": 3},
            "train_saross": student,
            "predict": {"num_images": 2},
        }
    )


def with_zero_stage(config: Config, stage: int) -> Config:
    """The same experiment under another ZeRO stage."""
    tree = config.model_dump(mode="json")
    for section in ("train_jointnet", "train_saross"):
        tree[section]["engine"]["deepspeed"] = f"configs/deepspeed/zero{stage}.json"
    return build_config(tree)


def train_stages(tree: dict, stages: tuple[int, ...]) -> list[float]:
    """Train the teacher's stages; the losses of the last one's steps, as its log has them."""
    from dakd.runtime.distributed import barrier
    from dakd.runtime.runlog import read_records
    from dakd.train.jointnet import stage_folder, train_jointnet

    config = build_config(tree)
    train_jointnet(config, stages)
    barrier()
    return [record["loss"] for record in read_records(stage_folder(config, stages[-1]) / "metrics.jsonl")]


def write_checkpoints(folder: Path, first_step: int, identity: dict) -> None:
    """Checkpoint after checkpoint, each filled with its step; killed from outside."""
    import torch

    from dakd.train.checkpoint import save_checkpoint

    for step in range(first_step, first_step + 10_000):
        state = {f"master/{name}": torch.full((30_000,), float(step)) for name in "abc"}
        save_checkpoint(folder, step, state, {"identity": identity, "position": step}, keep=2)


def generate_pairs(tree: dict) -> str:
    """Generate the configured pairs; the folder."""
    from dakd.generate.generate import generate

    return str(generate(build_config(tree)))


def train_student(tree: dict, training_set: str) -> list[float]:
    """Train one student; the losses of its steps, as its log has them."""
    from dakd.runtime.distributed import barrier
    from dakd.runtime.runlog import read_records
    from dakd.train.saross import student_folder, train_saross

    config = build_config(tree)
    train_saross(config, (training_set,))
    barrier()
    return [record["loss"] for record in read_records(student_folder(config, training_set) / "metrics.jsonl")]
