"""The teacher's three stages: what each trains, what it freezes, what it starts from (paper, section on training).

    stage 1   SAR-Net alone, without bridges                                               L_x
    stage 2   Label-Net (from SAR-Net) and all bridges; the rest of SAR-Net stands still   L_x + L_y
    stage 3   everything, at a reduced rate                                                L_x + L_y

Each stage is a training of its own with a new engine; weights pass between stages as safetensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dakd.config import Config
from dakd.data.balance import resolve_balance
from dakd.data.batch import Batch
from dakd.data.loader import TeacherDataset
from dakd.data.prepared import open_prepared, open_shards, reading_options
from dakd.data.shards import ShardSet
from dakd.data.streams import StreamDataset
from dakd.data.transforms import to_teacher
from dakd.diffusion.labels import READINGS
from dakd.diffusion.loss import image_loss, label_l2_loss, label_loss
from dakd.diffusion.precondition import clean_image_at
from dakd.diffusion.schedule import CosineSchedule
from dakd.kernels.joint_noising import joint_noising
from dakd.models.jointnet import SARJointNet
from dakd.models.unet import UNet
from dakd.runtime.distributed import is_main
from dakd.runtime.files import file_hash
from dakd.train.checkpoint import list_checkpoints
from dakd.train.ddpm import describe_ddpm
from dakd.train.engine import Engine, resolve_precision
from dakd.train.grids import draw_pairs
from dakd.train.loop import Training, is_done, run_training
from dakd.train.optim import optimizer_identity
from dakd.train.sigma_data import resolve_sigma_data
from dakd.weights import load_state, load_strict, read_metadata


@dataclass(frozen=True)
class Noising:
    """The forward process of a stage: t and noise are functions of (seed, global position)."""

    schedule: CosineSchedule
    b: float
    num_classes: int
    seed: int
    sigma_data: float | None = None

    def __call__(self, image: Tensor, label: Tensor | None, positions: Tensor, dtype: torch.dtype):
        """x_t, y_t (or None) and t of a batch; see kernels.joint_noising."""
        return joint_noising(
            image,
            label,
            positions,
            self.schedule.noising_table(image.device),
            b=self.b,
            num_classes=self.num_classes,
            seed=self.seed,
            out_dtype=dtype,
        )

    def clean_image(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0_hat that the image branch's output stands for."""
        return clean_image_at(output, x_t, t, self.schedule, self.sigma_data)


class ImageTraining(nn.Module):
    """Stage 1: L_x of SAR-Net on a batch."""

    def __init__(self, net: UNet, noising: Noising, memory_format: torch.memory_format):
        super().__init__()
        self.net, self.noising, self.memory_format = net, noising, memory_format

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_t, _, t = self.noising(batch.image, None, batch.positions, _dtype(self.net))
        output = self.net(x_t.to(memory_format=self.memory_format), t)
        x_hat = self.noising.clean_image(output, x_t, t)
        loss = image_loss(to_teacher(batch.image), x_hat)
        return {"loss": loss, "loss_x": loss}


class JointTraining(nn.Module):
    """Stages 2 and 3: L_x + w L_y of SAR-JointNet on a batch (paper, Eq. 7)."""

    def __init__(
        self,
        net: SARJointNet,
        noising: Noising,
        label_weight: float,
        memory_format: torch.memory_format,
        label_loss_name: str = "ce",
    ):
        super().__init__()
        self.net, self.noising, self.label_weight, self.memory_format = net, noising, label_weight, memory_format
        self.label_loss = label_loss_name

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_t, y_t, t = self.noising(batch.image, batch.label, batch.positions, _dtype(self.net))
        output, logits = self.net(x_t.to(memory_format=self.memory_format), y_t.to(memory_format=self.memory_format), t)
        x_hat = self.noising.clean_image(output, x_t, t)
        loss_x = image_loss(to_teacher(batch.image), x_hat)
        if self.label_loss == "ce":
            loss_y = label_loss(logits, batch.label)  # raw logits against the mask, which b does not touch
        else:
            loss_y = label_l2_loss(logits, batch.label, self.noising.b)
        return {"loss": loss_x + self.label_weight * loss_y, "loss_x": loss_x, "loss_y": loss_y}


def freeze_for_stage(net: SARJointNet, stage: int) -> None:
    """Stage 2 holds SAR-Net but not its bridge; stage 3 frees all. Gradients still flow through what is held."""
    net.requires_grad_(True)
    if stage == 2:
        net.sar_net.requires_grad_(False)


def stage_folder(config: Config, stage: int) -> Path:
    return config.run_path / "train_jointnet" / f"stage{stage}"


def weights_file(config: Config, stage: int, kind: str) -> Path:
    """Where a stage leaves its `ema` or `raw` weights."""
    return stage_folder(config, stage) / f"weights_{kind}.safetensors"


def train_jointnet(config: Config, stages: tuple[int, ...] = (1, 2, 3)) -> None:
    """Train the given stages in order; a stage that is finished is left as it is, an unfinished one goes on.

    DDPM has no stages, so that they must be all: ValueError otherwise.
    """
    if config.train_jointnet.generator == "ddpm" and set(stages) != {1, 2, 3}:
        raise ValueError("train_jointnet.generator is ddpm, which trains in one stage; set --stage to all, or leave it")
    train = open_prepared(config, "train")
    if config.train_jointnet.generator == "ddpm":
        run_training(describe_ddpm(config, train), config)
        return
    b = resolve_balance(config.balance.b, config.run_path)
    for stage in stages:
        training = describe_stage(config, stage, train, b)
        if stage < 3:
            _refuse_to_outrun(training, stage_folder(config, stage + 1))
        run_training(training, config)


def _refuse_to_outrun(training: Training, follower: Path) -> None:
    """A stage that another has started from stays as it is: the other could not be continued."""
    is_longer = not is_done(training)
    if is_longer and training.final_weights.exists() and list_checkpoints(follower / "checkpoints"):
        raise ValueError(
            f"{training.label} would be trained on to step {training.total_steps}, but {follower} has started from it; "
            f"set its steps back, or remove {follower} (and what follows) to train them anew"
        )


def describe_stage(config: Config, stage: int, train: ShardSet, b: float) -> Training:
    """All that is particular about a stage. Raises ValueError where the stage before has left no weights."""
    cfg = config.train_jointnet
    settings = {1: cfg.stage1, 2: cfg.stage2, 3: cfg.stage3}[stage]
    previous = None if stage == 1 else weights_file(config, stage - 1, cfg.init_from)
    if previous is not None and not previous.exists():
        raise ValueError(f"stage {stage} starts from {previous}, which is absent; run --stage {stage - 1} first")
    extra = cfg.stage1.extra_images if stage == 1 else ()
    sources = [train] + [open_shards(place, config.data, train.classes) for place in extra]
    seed = config.seed * 8 + stage  # every stage has its own order and noise
    num_classes = train.classes.num_classes
    schedule = CosineSchedule(cfg.schedule.num_train_timesteps)
    sigma_data = resolve_sigma_data(cfg.sigma_data, train, config.data.on_bad_record)
    if previous is not None and (found := read_metadata(previous).get("sigma_data")) != sigma_data:
        raise ValueError(
            f"{previous} was trained with sigma_data {found}, and stage {stage} would go on with {sigma_data}; "
            "set train_jointnet.sigma_data back, or train the stages anew in another run folder"
        )
    noising = Noising(schedule, b, num_classes, seed, sigma_data)
    identity = {
        "stage": stage,
        "unet": cfg.unet.model_dump(mode="json"),
        "num_classes": num_classes,
        "schedule": cfg.schedule.model_dump(mode="json"),
        "b": b,
        "global_batch": cfg.global_batch,
        "crop": list(cfg.crop),
        "flip": cfg.flip,
        "seed": config.seed,
        "window_shards": config.data.window_shards,
        "data": [source.index["fingerprint"] for source in sources],
        "optimizer": optimizer_identity(cfg.optimizer, settings.lr, settings.steps),
        "label_loss_weight": cfg.label_loss_weight,
        "starts_from": None if previous is None else file_hash(previous),
    }
    if stage > 1 and cfg.label_loss != "ce":
        identity["label_loss"] = cfg.label_loss
    if sigma_data is not None:
        identity["sigma_data"] = sigma_data
    metadata = identity | {"kind": "unet" if stage == 1 else "jointnet", "classes": train.classes.to_dict()}

    dataset: TeacherDataset | StreamDataset
    if stage == 1 and cfg.stage1.streams:
        identity["data"] = list(cfg.stage1.streams)
        options = {"flip": cfg.flip, "seed": seed, "on_bad_record": config.data.on_bad_record}
        dataset = StreamDataset(cfg.stage1.streams, cfg.crop, train.classes, **options)
    else:
        options = reading_options(config.data)
        dataset = TeacherDataset(sources, cfg.crop, flip=cfg.flip, seed=seed, labelled=stage > 1, **options)

    def build(is_new: bool) -> nn.Module:
        memory_format = torch.channels_last if cfg.engine.channels_last else torch.contiguous_format
        if stage == 1:
            return ImageTraining(UNet.from_config(cfg.unet, 1, 1), noising, memory_format)
        net = SARJointNet.from_config(cfg.unet, num_classes)
        if is_new and stage == 2:
            load_strict(net.sar_net, load_state(previous), str(previous))
            net.start_label_net_from_sar_net()
        elif is_new:
            load_strict(net, load_state(previous), str(previous))
        freeze_for_stage(net, stage)
        return JointTraining(net, noising, cfg.label_loss_weight, memory_format, cfg.label_loss)

    def finish(engine: Engine) -> None:
        engine.save_net_weights(lambda kind: weights_file(config, stage, kind), metadata)

    def draw(engine: Engine, folder: Path, step: int) -> None:
        weights = engine.net_weights("ema")
        if is_main():
            draw_grid(config, stage, weights, noising, train, folder / f"step-{step:08d}.png")

    return Training(
        label=f"stage{stage}",
        folder=stage_folder(config, stage),
        build=build,
        dataset=dataset,
        total_steps=settings.steps,
        lr=settings.lr,
        global_batch=cfg.global_batch,
        micro_batch=cfg.micro_batch,
        seed=seed,
        optimizer=cfg.optimizer,
        engine=cfg.engine,
        precision=resolve_precision(cfg.engine.precision, on_gpu="bf16"),
        decays_vectors=True,
        identity=identity,
        final_weights=weights_file(config, stage, "ema"),
        finish=finish,
        draw=draw,
    )


class ImageOnly(nn.Module):
    """Stage 1's net behind the interface of the joint one: its labels are blank."""

    def __init__(self, net: UNet):
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x_t, t), torch.zeros_like(y_t)


def draw_grid(config: Config, stage: int, weights: dict, noising: Noising, train: ShardSet, path: Path) -> None:
    """A picture of sampled pairs, label beside image (images alone in stage 1), from the same starts each time."""
    cfg, classes = config.train_jointnet, train.classes
    net: nn.Module
    if stage == 1:
        net = UNet.from_config(cfg.unet, 1, 1)
    else:
        net = SARJointNet.from_config(cfg.unet, classes.num_classes)
    load_strict(net, weights, "the training engine")
    draw_pairs(
        config,
        ImageOnly(net) if stage == 1 else net,
        noising.schedule,
        noising.b,
        READINGS[cfg.label_loss],
        classes,
        path,
        label_channels=classes.num_classes,
        labelled=stage > 1,
        sigma_data=noising.sigma_data,
    )


def _dtype(net: nn.Module) -> torch.dtype:
    return next(net.parameters()).dtype
