"""Pictures of what a teacher in training samples."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from dakd.config import Config
from dakd.data.pictures import contact_sheet
from dakd.data.sample import ClassTable
from dakd.diffusion.labels import LabelReading
from dakd.diffusion.sampler import PairSampler, start_noise, to_grey
from dakd.diffusion.schedule import CosineSchedule
from dakd.runtime.distributed import device


def draw_pairs(
    config: Config,
    net: nn.Module,
    schedule: CosineSchedule,
    b: float,
    reading: LabelReading,
    classes: ClassTable,
    path: Path,
    *,
    label_channels: int,
    sigma_data: float | None = None,
    labelled: bool = True,
) -> None:
    """A picture of sampled pairs, label beside image (images alone unless labelled), from the same starts each time."""
    cfg = config.train_jointnet
    sampler = PairSampler(
        net.to(device()).eval(),
        schedule,
        cfg.engine.sample_steps,
        b=b,
        reading=reading,
        sigma_data=sigma_data,
        device=device(),
    )
    x, y = start_noise(config.seed, range(cfg.engine.num_samples), cfg.crop, label_channels)
    image, logits = sampler(x, y)
    grey = to_grey(image)[:, 0].cpu().numpy()
    labels = logits.argmax(1).to(torch.uint8).cpu().numpy()
    pairs = [(sar, label if labelled else None) for sar, label in zip(grey, labels)]
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = max(1, math.isqrt(len(pairs)))
    contact_sheet(pairs, classes, columns=columns, scale=max(1, 128 // cfg.crop[0])).save(path)
