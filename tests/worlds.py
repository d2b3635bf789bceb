"""What tests run on several processes, importable by name in a new process; and the toy experiments they share."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import torch

from dakd.config import Config, build_config
from dakd.runtime import distributed


def toy_config(run_dir: Path, **train: object) -> Config:
    """Every step at the smallest size that is still all of it; `train` replaces settings of train_jointnet."""
    optimizer = {"warmup_steps": 2, "ema_decay": 0.9}
    engine = {"num_workers": 0, "log_every": 1, "checkpoint_every": 2, "wandb": "off", "threads": 1}
    teacher = {
        "unet": {"channels": [8, 16], "blocks_per_level": 1, "attention_levels": [1], "norm_groups": 4},
        "crop": [16, 16],
        "global_batch": 4,
        "micro_batch": 2,
        "optimizer": optimizer,
        "engine": engine | {"sample_every": 0},
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
        "optimizer": optimizer | {"lr": 1e-3, "lr_decay": "constant"},  # so that tests can make a run longer
        "engine": engine,
    }
    return build_config(
        {
            "name": "toy",
            "run_dir": str(run_dir),
            "seed": 3,
            "prepare": {"simulation": {"num_train": 12, "num_test": 4, "size": [32, 32]}, "shard_size": 5},
            "train_jointnet": teacher | train,
            "generate": {"num_samples": 7, "size": [16, 16], "sampling_steps": 3, "micro_batch": 2, "shard_size": 3,
                         "seed": 0, "threads": 1},
            "train_saross": student,
            "predict": {"num_images": 2},
        }
    )


def prepared(folder: Path, **train: object) -> Config:
    """A toy run in `folder` with its training set; `train` replaces settings of train_jointnet."""
    from dakd.data.prepare import prepare

    config = toy_config(folder / "run", **train)
    prepare(config, config.run_path)
    return config


def replaced(config: Config, **train: object) -> Config:
    """The same experiment in the same folder with other settings of train_jointnet."""
    tree = config.model_dump(mode="json")
    tree["train_jointnet"] |= train
    return build_config(tree)


def with_teacher(run_dir: Path, **settings: object) -> Config:
    """A toy run whose teacher is an untrained net with speaking bridges; `settings` replace those of generate."""
    import torch

    from dakd.data.sample import OSD_CLASSES
    from dakd.models.jointnet import SARJointNet
    from dakd.runtime.tensor_files import save_weights

    tree = toy_config(run_dir).model_dump(mode="json")
    tree["generate"] |= settings
    config = build_config(tree)
    torch.manual_seed(0)
    net = SARJointNet.from_config(config.train_jointnet.unet, 5)
    for parameter in [*net.sar_bridge.parameters(), *net.label_bridge.parameters()]:
        torch.nn.init.normal_(parameter, std=0.05)
    facts = {
        "kind": "jointnet",
        "unet": config.train_jointnet.unet.model_dump(mode="json"),
        "num_classes": 5,
        "schedule": config.train_jointnet.schedule.model_dump(mode="json"),
        "b": 0.4,
        "classes": OSD_CLASSES.to_dict(),
    }
    save_weights(teacher_file(config), net.state_dict(), facts)
    return config


def with_ddpm(run_dir: Path, **settings: object) -> Config:
    """The same with an untrained DDPM."""
    import torch

    from dakd.data.sample import OSD_CLASSES
    from dakd.models.rivals.ddpm import DDPM
    from dakd.runtime.tensor_files import save_weights

    tree = toy_config(run_dir, generator="ddpm").model_dump(mode="json")
    tree["generate"] |= settings
    config = build_config(tree)
    torch.manual_seed(0)
    facts = {
        "kind": "ddpm",
        "unet": config.train_jointnet.unet.model_dump(mode="json"),
        "num_classes": 5,
        "schedule": config.train_jointnet.schedule.model_dump(mode="json"),
        "b": 1.0,
        "classes": OSD_CLASSES.to_dict(),
    }
    state = DDPM.from_config(config.train_jointnet.unet, 3).state_dict()
    save_weights(config.run_path / "train_jointnet" / "ddpm" / "weights_ema.safetensors", state, facts)
    return config


def teacher_file(config: Config) -> Path:
    return config.run_path / "train_jointnet" / "stage3" / "weights_ema.safetensors"


def with_pairs(folder: Path, codec: str = "fp16", seed: int = 0, **train: object) -> Config:
    """A toy run with a prepared training set and eight synthetic pairs of 64 x 64, written for temperature 2.

    seed: of the pairs, and, if not 0, of the simulated scenes.  train: settings of train_saross.
    """
    from dakd.data.prepare import prepare
    from dakd.data.sample import Sample
    from dakd.data.shards import ShardSet, write_index, write_shard

    tree = toy_config(folder / "run").model_dump(mode="json")
    tree["prepare"]["simulation"] |= {"size": [64, 64], "seed": seed or None}
    tree["train_saross"] |= train
    config = build_config(tree)
    prepare(config, config.run_path)
    classes = ShardSet(config.run_path / "prepare" / "train").classes
    rng = np.random.default_rng(seed)
    pairs = [
        Sample(
            f"pair-{i}",
            rng.integers(0, 256, (64, 64), dtype=np.uint8),
            soft_label=rng.normal(size=(5, 64, 64)).astype(np.float16),
        )
        for i in range(8)
    ]
    pairs_folder = config.run_path / "generate"
    write_shard(pairs_folder, 0, pairs, classes, codec=codec, temperature=2.0)
    write_index(pairs_folder, classes, kind="synthetic", codec=codec)
    return config


def with_engine(config: Config, deepspeed: str, **train: object) -> Config:
    """The same experiment under another file of configs/deepspeed/; `train` replaces settings of train_jointnet."""
    tree = config.model_dump(mode="json")
    for section in ("train_jointnet", "train_saross"):
        tree[section]["engine"]["deepspeed"] = f"configs/deepspeed/{deepspeed}.json"
    tree["train_jointnet"] |= train
    return build_config(tree)


def in_folder(config: Config, folder: Path) -> Config:
    """The same experiment in a run folder of its own, with the same data."""
    shutil.copytree(config.run_path, folder)
    return build_config(config.model_dump(mode="json") | {"run_dir": str(folder)})


def losses_of(folder: Path) -> list[float]:
    """The losses of a training's steps, as its log has them."""
    from dakd.runtime.runlog import read_records

    return [record["loss"] for record in read_records(folder / "metrics.jsonl")]


def train_each(trees: list[dict], stages: tuple[int, ...], training_set: str | None) -> list[list[float]]:
    """Train the teacher's stages and one student for each of the configurations, one after the other; all losses."""
    from dakd.runtime.distributed import barrier
    from dakd.train.jointnet import train_jointnet
    from dakd.train.saross import student_folder, train_saross
    from dakd.train.teacher import stage_folder

    losses = []
    for config in map(build_config, trees):
        train_jointnet(config, stages)
        if training_set is not None:
            train_saross(config, (training_set,))
        barrier()
        folders = [stage_folder(config, f"stage{stage}") for stage in stages]
        folders += [student_folder(config, training_set)] if training_set is not None else []
        losses.append([loss for folder in folders for loss in losses_of(folder)])
    return losses


def score_held_out(tree: dict) -> list:
    """The line and the temperature of a student with the seed's weights on the held-out images; nothing is kept."""
    import tempfile

    from dakd.runtime.seeding import seed_everything
    from dakd.train.saross import StudentTraining
    from dakd.train.validation import Validation

    distributed.init_process_group()
    training = StudentTraining(build_config(tree), "real")
    seed_everything(5)
    weights = training.new_net().state_dict()
    with tempfile.TemporaryDirectory() as folder:
        held_out = training.validation
        alone = Validation(held_out.cfg, training.new_net, held_out.real, held_out.places, Path(folder), "toy",
                           held_out.on_bad_record)  # fmt: skip
        alone.begin(0)
        line = alone.score(weights if distributed.is_main() else {}, 1)
        fit = alone.fit(weights if distributed.is_main() else {}, "ema")
        distributed.barrier()
    return [line, fit.temperature]


def disturb(tree: dict) -> dict[str, str]:
    """Two ranks train stage 1 while rank 1 alone meets trouble: a signal, a loss and a gradient that are not finite."""
    import dakd.diffusion.loss as losses_of_teachers
    from dakd.runtime.distributed import barrier, rank
    from dakd.runtime.stopping import Preempted
    from dakd.train.engine import Engine, NonFiniteLoss
    from dakd.train.jointnet import train_jointnet

    config, messages = build_config(tree), {}
    image_loss, train_step = losses_of_teachers.image_loss, Engine.train_step

    def signal_rank_1(*args):
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return train_step(*args)

    def loss_is_nan(x_0, x_hat):
        losses = image_loss(x_0, x_hat)
        return losses * torch.tensor([1.0, float("nan")]) if rank() == 1 else losses

    def gradient_is_nan(x_0, x_hat):
        zero = (x_hat - x_hat.detach()).abs().sqrt().sum(dim=(1, 2, 3))  # its gradient is not a number
        return image_loss(x_0, x_hat) + (zero if rank() == 1 else 0 * zero.detach())

    Engine.train_step = signal_rank_1
    try:
        train_jointnet(config, (1,))
    except Preempted as stopped:
        messages["signal"] = str(stopped)
    Engine.train_step = train_step
    for name, poisoned in (("loss", loss_is_nan), ("gradient", gradient_is_nan)):
        losses_of_teachers.image_loss = poisoned
        try:
            _train_without_restoring(config)
        except NonFiniteLoss as error:
            messages[name] = str(error)
        barrier()
    losses_of_teachers.image_loss = image_loss
    train_jointnet(config, (1,))
    return messages


def _train_without_restoring(config: Config) -> None:
    """Resume from the checkpoint's weights only, so that the poison meets a step and not the restoring of states."""
    from dakd.train.engine import Engine
    from dakd.train.jointnet import train_jointnet

    restore, Engine.restore = Engine.restore, lambda *_: None
    try:
        train_jointnet(config, (1,))
    finally:
        Engine.restore = restore


def write_checkpoints(folder: Path, first_step: int, identity: dict) -> None:
    """Checkpoint after checkpoint, each filled with its step; killed from outside."""
    from dakd.train.checkpoint import save_checkpoint

    for step in range(first_step, first_step + 10_000):
        state = {f"master/{name}": torch.full((30_000,), float(step)) for name in "abc"}
        save_checkpoint(folder, step, state, {"identity": identity, "position": step}, keep=2)


def generate_pairs(tree: dict) -> str:
    """Generate the configured pairs; the folder."""
    from dakd.generate.generate import generate

    return str(generate(build_config(tree)))


def finished_run(folder: Path, seed: int = 0) -> Config:
    """A toy run with every kind of file that later steps believe. Its nets are untrained.

    seed: of weights and data.
    """
    import torch

    from dakd.data.balance import balance
    from dakd.data.sample import OSD_CLASSES
    from dakd.evaluate.evaluate import evaluate
    from dakd.models.registry import build_student
    from dakd.predict.predict import predict
    from dakd.runtime.runlog import save_config
    from dakd.runtime.sealed import files_of, write_manifest
    from dakd.train.checkpoint import save_checkpoint
    from dakd.train.saross import student_folder
    from dakd.weights import save_student

    tree = with_pairs(folder, seed=seed).model_dump(mode="json")
    tree["evaluate"] |= {"num_pictures": 2, "bootstrap": 20}
    tree["train_saross"]["training_sets"] = ["real"]
    config = build_config(tree)
    teacher = teacher_file(with_teacher(config.run_path)).parent
    torch.manual_seed(seed)
    student, settings = student_folder(config, "real"), config.train_saross.student
    for name in ("student", "student_raw"):
        net = build_student(settings, OSD_CLASSES.num_classes)
        save_student(student / f"{name}.safetensors", net, settings, OSD_CLASSES, {"seed": seed})
    state = {"master/a": torch.arange(6.0)}
    save_checkpoint(student / "checkpoints", 4, state, {"identity": {}, "position": 16}, keep=2)
    log = "".join(json.dumps({"step": n, "loss": seed + 1 / n}) + "\n" for n in (1, 2, 3, 4))
    (student / "metrics.jsonl").write_text(log)
    for place in (teacher, student):
        save_config(config, place)
        write_manifest(place, files_of(place))
    balance(config)
    evaluate(config)
    predict(config)
    return config


def use_collectives(late_file: str) -> list:
    """What the collectives give this rank; the last rank writes `late_file` late, before a barrier."""
    distributed.init_process_group()
    rank = distributed.rank()
    if rank:
        time.sleep(0.3)
        Path(late_file).write_text("")
    distributed.barrier()
    is_there = Path(late_file).exists()  # before another collective waits
    return [
        distributed.all_reduce_sum([1.0 + rank, 1.0]),
        distributed.all_gather_number(7.0 + rank),
        distributed.all_gather_text(f"rank {rank}" * rank),
        distributed.broadcast({"from": rank}),
        is_there,
    ]
