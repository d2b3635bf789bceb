"""Students for tests: one without parts that a test does not use, one whose logits are given."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.models.student import StudentNet


class BareStudent(StudentNet):
    """Implements what a student must, so that a test's own class states only what the test uses."""

    @classmethod
    def from_config(cls, cfg, num_classes):
        raise AssertionError(f"no test makes a {cls.__name__} from settings")

    def encode(self, image):
        raise AssertionError(f"{type(self).__name__} has no encoder")

    def segment(self, image):
        raise AssertionError(f"{type(self).__name__} segments nothing")


class FixedLogits(BareStudent):
    """Gives the same logits (B, K, H, W) for every batch; they are its parameter, whose gradient is then the loss's."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits.shape[1], multiple=1)
        self.logits = torch.nn.Parameter(logits)

    def forward(self, image: Tensor) -> Tensor:
        return self.logits
