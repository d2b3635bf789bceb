"""The part that the teacher's stages and DDPM share: folders, sigma_data, weights files, pictures of sampled pairs."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from dakd.config import Config, TrainJointNetConfig
from dakd.data.good_records import good_samples
from dakd.data.ordered_records import OnBadRecord
from dakd.data.pictures import contact_sheet, save_png
from dakd.data.shards import ShardSet
from dakd.diffusion.label_bits import num_bits
from dakd.diffusion.label_reading import LabelReading
from dakd.diffusion.loss import ImageObjective
from dakd.diffusion.precondition import fine_detail
from dakd.diffusion.sampler import PairSampler, start_noise, to_grey
from dakd.diffusion.schedule import CosineSchedule
from dakd.models.jointnet import SARJointNet
from dakd.models.rivals.ddpm import DDPM
from dakd.models.unet import UNet
from dakd.runtime.distributed import device, is_main
from dakd.runtime.precision import pays_in_unet
from dakd.runtime.runlog import say
from dakd.runtime.tensor_files import load_strict
from dakd.train.engine import Engine
from dakd.train.training import Training, is_due

# Every stage has its own order and noise. The offsets are part of every result: append, never renumber.
_SEED_OFFSETS = {"stage1": 1, "stage2": 2, "stage3": 3, "ddpm": 4}
_MAX_IMAGES = 512  # that sigma_data "auto" looks at


def stage_folder(config: Config, stage: str) -> Path:
    """The folder of a stage: `stage1` to `stage3`, or `ddpm`, which has one stage."""
    return config.run_path / "train_jointnet" / stage


def stage_weights(config: Config, stage: str, kind: str) -> Path:
    """The file of a stage's `ema` or `raw` weights."""
    return stage_folder(config, stage) / f"weights_{kind}.safetensors"


def net_of(stage: str, section: TrainJointNetConfig, num_classes: int) -> UNet | SARJointNet | DDPM:
    """A stage's net with fresh weights: `stage1` to `stage3`, or `ddpm`."""
    if stage == "stage1":
        return UNet.from_config(section.unet, 1, 1)
    if stage == "ddpm":
        return DDPM.from_config(section.unet, num_bits(num_classes))
    return SARJointNet.from_config(section.unet, num_classes)


class TeacherTraining(Training):
    """A training of images, alone or with their labels. A subclass sets `dataset` and `data`.

    train: the prepared training set.  b: the balancing factor.
    """

    section: TrainJointNetConfig
    key, low_precision = "train_jointnet", "bf16"
    decays_vectors = True
    kind: str  # of net, in the weights' metadata
    is_labelled = True  # whether it trains on labels, and samples them
    label_channels: int  # of a sampled label
    reading: LabelReading  # of a sampled label

    def __init__(self, config: Config, train: ShardSet, *, stage: str, total_steps: int, lr: float, b: float):
        self.config, self.section, self.classes = config, config.train_jointnet, train.classes
        self.label, self.folder = stage, stage_folder(config, stage)
        self.total_steps, self.lr, self.b = total_steps, lr, b
        self.seed = config.seed * 8 + _SEED_OFFSETS[stage]
        self.schedule = CosineSchedule(self.section.schedule.num_train_timesteps)
        self.sigma_data = resolve_sigma_data(self.section.sigma_data, train, config.data.on_bad_record)
        self.objective = ImageObjective(self.sigma_data, self.section.image_loss == "output")

    def new_net(self) -> UNet | SARJointNet | DDPM:
        """The net with fresh weights."""
        return net_of(self.label, self.section, self.classes.num_classes)

    def pays_in_bf16(self, module: nn.Module) -> bool:
        return pays_in_unet(self.section.unet.channels)

    def own_identity(self) -> dict:
        return {
            "unet": self.section.unet.model_dump(mode="json"),
            "schedule": self.section.schedule.model_dump(mode="json"),
            "b": self.b,
            "sigma_data": self.sigma_data,
            # None, not "clean": files from before this setting have none.
            "image_loss": "output" if self.objective.of_output else None,
        }

    def weights_file(self, kind: str) -> Path:
        return stage_weights(self.config, self.label, kind)

    def finish(self, engine: Engine) -> None:
        # Sampling needs only this file: the identity holds the sizes, the schedule, b and sigma_data.
        engine.save_net_weights(
            self.weights_file, self.identity | {"kind": self.kind, "classes": self.classes.to_dict()}
        )

    def after_step(self, engine: Engine, step: int) -> None:
        if not is_due(self.section.engine.sample_every, step, self.total_steps):
            return
        weights = engine.net_weights("ema")
        if is_main():
            self.draw_pairs(weights, self.folder / "samples" / f"step-{step:08d}.png")

    def draw_pairs(self, weights: dict, path: Path) -> None:
        """A picture of sampled pairs, label next to image (images alone in stage 1), from the same starts each time."""
        engine, crop = self.section.engine, self.section.crop
        net = self.new_net()
        load_strict(net, weights, "the training engine")
        if not self.is_labelled:
            net = _WithBlankLabels(net)
        sampler = PairSampler(
            net.to(device()).eval(),
            self.schedule,
            engine.sample_steps,
            b=self.b,
            solver=self.config.generate.solver,
            spacing=self.config.generate.steps_spacing,
            reading=self.reading,
            sigma_data=self.sigma_data,
            device=device(),
        )
        image, logits = sampler(*start_noise(self.config.seed, range(engine.num_samples), crop, self.label_channels))
        grey = to_grey(image)[:, 0].cpu().numpy()
        labels = logits.argmax(1).to(torch.uint8).cpu().numpy()
        pairs = [(sar, label if self.is_labelled else None) for sar, label in zip(grey, labels)]
        columns = max(1, math.isqrt(len(pairs)))
        save_png(contact_sheet(pairs, self.classes, columns=columns, scale=max(1, 128 // crop[0])), path)


class _WithBlankLabels(nn.Module):
    """Gives a net of images alone the inputs and outputs of the joint one, for the sampler."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x_t, t), torch.zeros_like(y_t)


def resolve_sigma_data(
    setting: float | str | None, train: ShardSet, on_bad_record: OnBadRecord = "stop"
) -> float | None:
    """The sigma_data to train with; "auto": the deviation of the fine detail of the training images.

    It is that of at most 512 of them, evenly spread, to four digits. Damaged ones raise BadRecord or are left out, as
    `data.on_bad_record` has it. Raises ValueError where all are flat or damaged.
    """
    if setting != "auto":
        return setting
    count = min(len(train), _MAX_IMAGES)
    places = (i * len(train) // count for i in range(count))
    images = (sample.sar for _, sample in good_samples(train, places, on_bad_record, "sigma_data"))
    deviation = round(fine_detail(images), 4)
    if deviation == 0:
        raise ValueError(
            f"sigma_data is auto and the {count} training images have no fine detail; set train_jointnet.sigma_data"
        )
    say(f"sigma_data {deviation} (auto: the deviation of the fine detail of {count} training images)")
    return deviation
