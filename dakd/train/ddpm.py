"""The training of DDPM, SatSynth's way: one stage, image and label bits in one net, L2 on all channels.

Its budget is that of the three stages together: as many optimizer steps, at stage 1's rate. BALANCE has no part in it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dakd.config import Config
from dakd.data.batch import Batch
from dakd.data.loader import TeacherDataset
from dakd.data.prepared import reading_options
from dakd.data.shards import ShardSet
from dakd.data.transforms import to_teacher
from dakd.diffusion.bits import bits_as_grey, num_bits
from dakd.diffusion.labels import bit_reading
from dakd.diffusion.loss import bit_loss, image_loss
from dakd.diffusion.precondition import clean_image_at
from dakd.diffusion.schedule import CosineSchedule
from dakd.kernels.joint_noising import joint_noising
from dakd.models.rivals.ddpm import DDPM
from dakd.runtime.distributed import is_main
from dakd.train.engine import Engine, resolve_precision
from dakd.train.grids import draw_pairs
from dakd.train.loop import Training
from dakd.train.optim import optimizer_identity
from dakd.train.sigma_data import resolve_sigma_data
from dakd.weights import load_strict

_SEED_OFFSET = 4  # the stages have 1, 2 and 3


class DDPMTraining(nn.Module):
    """L2 of image and bits on a batch, mean over the channels."""

    def __init__(
        self,
        net: DDPM,
        schedule: CosineSchedule,
        num_classes: int,
        seed: int,
        memory_format: torch.memory_format,
        sigma_data: float | None = None,
    ):
        super().__init__()
        self.net, self.schedule, self.num_classes, self.seed = net, schedule, num_classes, seed
        self.memory_format, self.sigma_data = memory_format, sigma_data

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_t, y_t, t = self.noised(batch, next(self.net.parameters()).dtype)
        output, y_hat = self.net(x_t.to(memory_format=self.memory_format), y_t.to(memory_format=self.memory_format), t)
        x_hat = clean_image_at(output, x_t, t, self.schedule, self.sigma_data)
        loss_x = image_loss(to_teacher(batch.image), x_hat)
        loss_y = bit_loss(y_hat, batch.label, self.num_classes)
        n = self.net.label_channels
        return {"loss": (loss_x + n * loss_y) / (1 + n), "loss_x": loss_x, "loss_y": loss_y}

    def noised(self, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (B, 1, H, W), y_t (B, n, H, W) and t (B,), functions of (seed, global position) alone."""
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


def ddpm_folder(config: Config) -> Path:
    return config.run_path / "train_jointnet" / "ddpm"


def ddpm_weights_file(config: Config, kind: str) -> Path:
    """Where the training leaves its `ema` or `raw` weights."""
    return ddpm_folder(config) / f"weights_{kind}.safetensors"


def describe_ddpm(config: Config, train: ShardSet) -> Training:
    """All that is particular about it."""
    cfg = config.train_jointnet
    steps, lr = cfg.stage1.steps + cfg.stage2.steps + cfg.stage3.steps, cfg.stage1.lr
    seed, num_classes = config.seed * 8 + _SEED_OFFSET, train.classes.num_classes
    schedule = CosineSchedule(cfg.schedule.num_train_timesteps)
    sigma_data = resolve_sigma_data(cfg.sigma_data, train, config.data.on_bad_record)
    identity = {
        "generator": "ddpm",
        "unet": cfg.unet.model_dump(mode="json"),
        "num_classes": num_classes,
        "schedule": cfg.schedule.model_dump(mode="json"),
        "b": 1.0,
        "global_batch": cfg.global_batch,
        "crop": list(cfg.crop),
        "flip": cfg.flip,
        "seed": config.seed,
        "window_shards": config.data.window_shards,
        "data": [train.index["fingerprint"]],
        "optimizer": optimizer_identity(cfg.optimizer, lr, steps),
    }
    if sigma_data is not None:
        identity["sigma_data"] = sigma_data
    metadata = identity | {"kind": "ddpm", "classes": train.classes.to_dict()}
    options = reading_options(config.data)

    def build(is_new: bool) -> nn.Module:
        memory_format = torch.channels_last if cfg.engine.channels_last else torch.contiguous_format
        net = DDPM.from_config(cfg.unet, num_bits(num_classes))
        return DDPMTraining(net, schedule, num_classes, seed, memory_format, sigma_data)

    def finish(engine: Engine) -> None:
        engine.save_net_weights(lambda kind: ddpm_weights_file(config, kind), metadata)

    def draw(engine: Engine, folder: Path, step: int) -> None:
        weights = engine.net_weights("ema")
        if is_main():
            net = DDPM.from_config(cfg.unet, num_bits(num_classes))
            load_strict(net, weights, "the training engine")
            draw_pairs(config, net, schedule, 1.0, bit_reading(num_classes), train.classes,
                       folder / f"step-{step:08d}.png", label_channels=net.label_channels,
                       sigma_data=sigma_data)  # fmt: skip

    return Training(
        label="ddpm",
        folder=ddpm_folder(config),
        build=build,
        dataset=TeacherDataset([train], cfg.crop, flip=cfg.flip, seed=seed, labelled=True, **options),
        total_steps=steps,
        lr=lr,
        global_batch=cfg.global_batch,
        micro_batch=cfg.micro_batch,
        seed=seed,
        optimizer=cfg.optimizer,
        engine=cfg.engine,
        precision=resolve_precision(cfg.engine.precision, on_gpu="bf16"),
        decays_vectors=True,
        identity=identity,
        final_weights=ddpm_weights_file(config, "ema"),
        finish=finish,
        draw=draw,
    )
