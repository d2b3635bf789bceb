"""The training of DDPM, SatSynth's way: one stage, image and label bits in one net, L2 on all channels.

Its budget is that of the three stages together: as many optimizer steps, at stage 1's rate. BALANCE has no part in it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dakd.config import Config
from dakd.data.batch import Batch
from dakd.data.datasets import TeacherDataset
from dakd.data.prepared import reading_options
from dakd.data.shards import ShardSet
from dakd.data.transforms import to_teacher
from dakd.diffusion.label_bits import bits_as_grey, num_bits
from dakd.diffusion.label_reading import bit_reading
from dakd.diffusion.loss import PAPERS_OBJECTIVE, ImageObjective, bit_loss
from dakd.diffusion.schedule import CosineSchedule
from dakd.kernels.joint_noising import joint_noising
from dakd.models.rivals.ddpm import DDPM
from dakd.train.teacher import TeacherTraining


class DDPMLoss(nn.Module):
    """L2 of image and bits on a batch, mean over the channels."""

    def __init__(
        self,
        net: DDPM,
        schedule: CosineSchedule,
        num_classes: int,
        seed: int,
        memory_format: torch.memory_format,
        objective: ImageObjective = PAPERS_OBJECTIVE,
    ):
        super().__init__()
        self.net, self.schedule, self.num_classes, self.seed = net, schedule, num_classes, seed
        self.memory_format, self.objective = memory_format, objective

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_t, y_t, t = self.noised(batch, next(self.net.parameters()).dtype)
        output, y_hat = self.net(x_t.to(memory_format=self.memory_format), y_t.to(memory_format=self.memory_format), t)
        loss_x = self.objective(to_teacher(batch.image), output, x_t, t, self.schedule)
        loss_y = bit_loss(y_hat, batch.label, self.num_classes)
        n = self.net.label_channels
        return {"loss": (loss_x + n * loss_y) / (1 + n), "loss_x": loss_x, "loss_y": loss_y}

    def noised(self, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (B, 1, H, W), y_t (B, n, H, W) and t (B,), functions only of (seed, global position)."""
        image = batch.image
        channels = torch.cat([image, bits_as_grey(batch.label, self.num_classes)], dim=1)
        # The op knows images of one channel: the channels lie below one another, each with noise of its own.
        stacked = channels.reshape(len(image), 1, -1, image.shape[-1])
        table = self.schedule.noising_table(image.device)
        noisy, _, t = joint_noising(
            stacked, None, batch.positions, table, b=1.0, num_classes=self.num_classes, seed=self.seed,
            out_dtype=dtype,
        )  # fmt: skip
        noisy = noisy.view(channels.shape)
        return noisy[:, :1], noisy[:, 1:], t


class DDPMTraining(TeacherTraining):
    """The one stage of DDPM."""

    kind = "ddpm"

    def __init__(self, config: Config, train: ShardSet):
        cfg = config.train_jointnet
        steps = cfg.stage1.steps + cfg.stage2.steps + cfg.stage3.steps
        super().__init__(config, train, stage="ddpm", total_steps=steps, lr=cfg.stage1.lr, b=1.0)
        self.label_channels, self.reading = num_bits(self.classes.num_classes), bit_reading(self.classes.num_classes)
        self.data = [train.fingerprint]
        options = reading_options(config.data)
        self.dataset = TeacherDataset([train], cfg.crop, flip=cfg.flip, seed=self.seed, labelled=True, **options)

    def build(self, is_new: bool) -> nn.Module:
        num_classes = self.classes.num_classes
        return DDPMLoss(self.new_net(), self.schedule, num_classes, self.seed, self.memory_format, self.objective)

    def own_identity(self) -> dict:
        return super().own_identity() | {"generator": "ddpm"}
