"""The training of the teacher in three stages, and the step `train_jointnet` (paper, section on training).

    stage 1   SAR-Net alone, without bridges                                               L_x
    stage 2   Label-Net (from SAR-Net) and all bridges; the rest of SAR-Net is frozen      L_x + L_y
    stage 3   everything, at a reduced rate                                                L_x + L_y

Each stage is a training of its own with a new engine; weights pass between stages as safetensors. The step trains the
teacher's rivals too: JointNet by its settings, DDPM as one stage (see `ddpm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dakd.config import Config
from dakd.data.balance import resolve_balance
from dakd.data.batch import Batch
from dakd.data.datasets import TeacherDataset
from dakd.data.pipes import PipeDataset
from dakd.data.prepared import find_unlabelled, open_prepared, open_shards, reading_options
from dakd.data.sample import ClassTable
from dakd.data.shards import ShardSet
from dakd.data.transforms import to_teacher
from dakd.diffusion.label_reading import READINGS
from dakd.diffusion.loss import PAPERS_OBJECTIVE, ImageObjective, label_l2_loss, label_loss
from dakd.diffusion.schedule import CosineSchedule
from dakd.kernels.joint_noising import joint_noising
from dakd.models.jointnet import SARJointNet
from dakd.models.unet import UNet
from dakd.runtime.files import file_hash
from dakd.runtime.tensor_files import load_state, load_strict, read_metadata
from dakd.train.checkpoint import list_checkpoints
from dakd.train.ddpm import DDPMTraining
from dakd.train.teacher import TeacherTraining, stage_folder, stage_weights
from dakd.train.training import run_training


@dataclass(frozen=True)
class Noising:
    """The forward process of a stage: t and noise are functions of (seed, global position)."""

    schedule: CosineSchedule
    b: float
    num_classes: int
    seed: int

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


class ImageLoss(nn.Module):
    """Stage 1: L_x of SAR-Net on a batch."""

    def __init__(
        self,
        net: UNet,
        noising: Noising,
        memory_format: torch.memory_format,
        objective: ImageObjective = PAPERS_OBJECTIVE,
    ):
        super().__init__()
        self.net, self.noising, self.memory_format, self.objective = net, noising, memory_format, objective

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_t, _, t = self.noising(batch.image, None, batch.positions, _dtype(self.net))
        output = self.net(x_t.to(memory_format=self.memory_format), t)
        loss = self.objective(to_teacher(batch.image), output, x_t, t, self.noising.schedule)
        return {"loss": loss, "loss_x": loss}


class JointLoss(nn.Module):
    """Stages 2 and 3: L_x + w L_y of SAR-JointNet on a batch (paper, Eq. 7)."""

    def __init__(
        self,
        net: SARJointNet,
        noising: Noising,
        label_weight: float,
        memory_format: torch.memory_format,
        label_loss_name: str = "ce",
        objective: ImageObjective = PAPERS_OBJECTIVE,
    ):
        super().__init__()
        self.net, self.noising, self.label_weight, self.memory_format = net, noising, label_weight, memory_format
        self.label_loss, self.objective = label_loss_name, objective

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_t, y_t, t = self.noising(batch.image, batch.label, batch.positions, _dtype(self.net))
        output, logits = self.net(x_t.to(memory_format=self.memory_format), y_t.to(memory_format=self.memory_format), t)
        loss_x = self.objective(to_teacher(batch.image), output, x_t, t, self.noising.schedule)
        if self.label_loss == "ce":
            loss_y = label_loss(logits, batch.label)  # raw logits against the mask, which b does not touch
        else:
            loss_y = label_l2_loss(logits, batch.label, self.noising.b)
        return {"loss": loss_x + self.label_weight * loss_y, "loss_x": loss_x, "loss_y": loss_y}


def freeze_for_stage(net: SARJointNet, stage: int) -> None:
    """Stage 2 freezes SAR-Net but not its bridge; stage 3 frees all. Gradients still flow through the frozen part."""
    net.requires_grad_(True)
    if stage == 2:
        net.sar_net.requires_grad_(False)


class StageTraining(TeacherTraining):
    """Stage 1, 2 or 3. Raises ValueError where the stage before has left no weights, or others than this one needs."""

    def __init__(self, config: Config, stage: int, train: ShardSet, b: float):
        cfg = config.train_jointnet
        settings = {1: cfg.stage1, 2: cfg.stage2, 3: cfg.stage3}[stage]
        self.stage, self.start = stage, None
        if stage > 1:
            self.start = stage_weights(config, f"stage{stage - 1}", cfg.init_from)
            if not self.start.exists():
                raise ValueError(
                    f"stage {stage} starts from {self.start}, which does not exist; run --stage {stage - 1} first"
                )
        super().__init__(config, train, stage=f"stage{stage}", total_steps=settings.steps, lr=settings.lr, b=b)
        if self.start is not None and (found := read_metadata(self.start).get("sigma_data")) != self.sigma_data:
            raise ValueError(
                f"{self.start} was trained with sigma_data {found}, and stage {stage} would continue with "
                f"{self.sigma_data}; set train_jointnet.sigma_data back, or train all stages in another run folder"
            )
        self.kind, self.is_labelled = ("unet" if stage == 1 else "jointnet"), stage > 1
        self.label_channels, self.reading = self.classes.num_classes, READINGS[cfg.label_loss]
        self.noising = Noising(self.schedule, b, self.classes.num_classes, self.seed)
        if stage == 1 and cfg.stage1.streams:
            self.data = list(cfg.stage1.streams)
            self.dataset = PipeDataset(
                cfg.stage1.streams,
                cfg.crop,
                self.classes,
                flip=cfg.flip,
                seed=self.seed,
                on_bad_record=config.data.on_bad_record,
            )
        else:
            sources = [train, *_images_alone(config, self.classes)] if stage == 1 else [train]
            self.data = [source.fingerprint for source in sources]
            self.dataset = TeacherDataset(
                sources,
                cfg.crop,
                flip=cfg.flip,
                seed=self.seed,
                labelled=self.is_labelled,
                **reading_options(config.data),
            )

    def build(self, is_new: bool) -> nn.Module:
        net = self.new_net()
        if isinstance(net, UNet):
            return ImageLoss(net, self.noising, self.memory_format, self.objective)
        if is_new and self.stage == 2:
            load_strict(net.sar_net, load_state(self.start), str(self.start))
            net.start_label_net_from_sar_net()
        elif is_new:
            load_strict(net, load_state(self.start), str(self.start))
        freeze_for_stage(net, self.stage)
        cfg = self.section
        return JointLoss(
            net, self.noising, cfg.label_loss_weight, self.memory_format, cfg.label_loss, self.objective
        )

    def own_identity(self) -> dict:
        own = {"stage": self.stage, "starts_from": None if self.start is None else file_hash(self.start)}
        if self.is_labelled:
            own |= {"label_loss": self.section.label_loss, "label_loss_weight": self.section.label_loss_weight}
        return super().own_identity() | own


def _images_alone(config: Config, classes: ClassTable) -> list[ShardSet]:
    """The images without labels of stage 1: the run's own, and those of `stage1.extra_images`."""
    unlabelled = find_unlabelled(config)
    extra = [
        open_shards(place, config.data, classes, images_only=True)
        for place in config.train_jointnet.stage1.extra_images
    ]
    return extra if unlabelled is None else [unlabelled, *extra]


def training_of_stage(config: Config, stage: str) -> TeacherTraining:
    """The training `stage1` to `stage3`, or `ddpm`, of a run whose set is prepared, as the step sets it up."""
    train = open_prepared(config, "train")
    if stage == "ddpm":
        return DDPMTraining(config, train)
    return StageTraining(config, int(stage[-1]), train, resolve_balance(config.balance.b, config.run_path))


def train_jointnet(config: Config, stages: tuple[int, ...] = (1, 2, 3)) -> None:
    """Train the teacher: the given stages of SAR-JointNet in order, or DDPM, its rival, where that is the generator.

    A finished stage is left as it is, and an unfinished one is resumed. DDPM has one stage, so `stages` must be all of
    them: ValueError otherwise.
    """
    if config.train_jointnet.generator == "ddpm" and set(stages) != {1, 2, 3}:
        raise ValueError("train_jointnet.generator is ddpm, which trains in one stage; set --stage to all, or leave it")
    train = open_prepared(config, "train")
    if config.train_jointnet.generator == "ddpm":
        run_training(DDPMTraining(config, train))
        return
    b = resolve_balance(config.balance.b, config.run_path)
    for stage in stages:
        training = StageTraining(config, stage, train, b)
        if stage < 3:
            _refuse_to_outrun(training, stage_folder(config, f"stage{stage + 1}"))
        run_training(training)


def _refuse_to_outrun(training: StageTraining, follower: Path) -> None:
    """A stage that another has started from stays as it is: the other could not be resumed."""
    has_weights = training.weights_file("ema").exists()
    if not training.is_done() and has_weights and list_checkpoints(follower / "checkpoints"):
        raise ValueError(
            f"{training.label} would be trained on to step {training.total_steps}, but {follower} has started from it; "
            f"set its steps back, or remove {follower} (and what follows) to train them again"
        )


def _dtype(net: nn.Module) -> torch.dtype:
    return next(net.parameters()).dtype
