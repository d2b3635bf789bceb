"""The base class of all trainings: the net, the data and the files of a stage, DDPM or a student. `loop` runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.utils.data import Dataset

from dakd.config import Config, TrainJointNetConfig, TrainSarossConfig
from dakd.data.sample import ClassTable
from dakd.runtime import distributed
from dakd.train.checkpoint import list_checkpoints, step_of
from dakd.train.engine import Engine
from dakd.train.optim import optimizer_identity
from dakd.train.zero import fitting_micro_batch, resolve_precision


class Training(ABC):
    """The base of all trainings.

    A subclass sets the attributes and defines the abstract methods; nothing else of a training differs.
    """

    config: Config  # the whole experiment
    section: TrainJointNetConfig | TrainSarossConfig  # this training's part of it: batches, optimizer, engine
    label: str  # in reports
    folder: Path  # of the log, checkpoints and weights
    dataset: Dataset
    classes: ClassTable
    data: list[str]  # what identifies the samples, such as the fingerprints of sets of shards
    total_steps: int  # optimizer steps
    lr: float  # after the warm-up
    seed: int  # of the initial weights, the order of the samples and the noise
    precision_on_gpu: ClassVar[str]  # what `engine.precision: auto` means there
    decays_vectors: ClassVar[bool]  # whether weight decay acts on biases and norm weights too

    @abstractmethod
    def build(self, is_new: bool) -> nn.Module:
        """The module that computes the losses of a batch, around the net; the same on every rank.

        is_new: False where a checkpoint's weights will replace the initial ones.
        """

    @abstractmethod
    def own_identity(self) -> dict:
        """The settings peculiar to this kind of training that a checkpoint must share."""

    @abstractmethod
    def weights_file(self, kind: str) -> Path:
        """The file of the final `raw` or `ema` weights."""

    @abstractmethod
    def finish(self, engine: Engine) -> None:
        """Write the final weights; a collective."""

    @property
    def sample_every(self) -> int:
        """Optimizer steps between pictures that `draw` makes; 0 for none."""
        return 0

    def draw(self, engine: Engine, step: int) -> None:
        """Write a picture of samples; a collective."""
        raise NotImplementedError(f"{self.label} draws no pictures")

    @cached_property
    def identity(self) -> dict:
        """All settings that a checkpoint must share with the training that resumes it; kept in weights files too.

        What changes neither the weights nor the order of the samples (processes, micro-batch, ZeRO) is left out.
        """
        return self.own_identity() | {
            "num_classes": self.classes.num_classes,
            "global_batch": self.section.global_batch,
            "crop": list(self.section.crop),
            "flip": self.section.flip,
            "seed": self.config.seed,
            "window_shards": self.config.data.window_shards,
            "data": self.data,
            "optimizer": optimizer_identity(self.section.optimizer, self.lr, self.total_steps),
        }

    @property
    def micro_batch(self) -> int:
        """Samples a rank and forward pass; ValueError where the ranks cannot share the global batch."""
        return fitting_micro_batch(self.section.global_batch, self.section.micro_batch, distributed.world_size())

    @property
    def precision(self) -> str:
        return resolve_precision(self.section.engine.precision, self.precision_on_gpu)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.section.engine.channels_last else torch.contiguous_format

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def is_done(self) -> bool:
        """Whether the last step was taken and its weights are there."""
        checkpoints = list_checkpoints(self.checkpoints)
        last_step = step_of(checkpoints[-1]) if checkpoints else 0
        return last_step >= self.total_steps and self.weights_file("ema").exists()
