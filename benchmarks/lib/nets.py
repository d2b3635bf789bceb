"""Nets of the paper's size with random weights and data, and toy ones for rehearsals."""

from __future__ import annotations

import torch
from torch import Tensor

from dakd.config import StudentConfig, UNetConfig
from dakd.data.batch import Batch
from dakd.models.jointnet import SARJointNet

NUM_CLASSES = 5
B_FACTOR = 0.528
_TINY_UNET = UNetConfig(channels=(8, 16), blocks_per_level=1, attention_levels=(1,), norm_groups=4)
# Between the toy and the paper's: what a CPU trains and samples in minutes. `small` is that of configs/real_small.yaml.
UNETS = {
    "small": UNetConfig(channels=(16, 32, 64, 96), blocks_per_level=1, attention_levels=(3,), norm_groups=8),
    "16M": UNetConfig(channels=(32, 64, 128, 208), blocks_per_level=1, attention_levels=(3,), norm_groups=16),
    "paper": UNetConfig(),
}
_TINY_STUDENT = StudentConfig(
    encoder="mamba_vision",
    encoder_options=dict(dim=24, in_dim=16, depths=[1, 1, 2, 2], num_heads=[1, 2, 4, 8], window_size=[8, 8, 4, 2],
                         drop_path=0.0),
    decoder_channels=(48, 48, 32, 16),
    caft_heads=(1, 1, 1),
)  # fmt: skip


def unet_config(is_tiny: bool) -> UNetConfig:
    return _TINY_UNET if is_tiny else UNetConfig()


def student_config(is_tiny: bool) -> StudentConfig:
    return _TINY_STUDENT if is_tiny else StudentConfig()


def joint_net(is_tiny: bool, device: str, dtype: torch.dtype = torch.float32) -> SARJointNet:
    """The net of the paper's size, or a toy one."""
    return joint_net_of(unet_config(is_tiny), device, dtype)


def joint_net_of(cfg: UNetConfig, device: str, dtype: torch.dtype = torch.float32) -> SARJointNet:
    """Random weights, also in the bridges, which start at zero: zeros draw less power and hide a wrong sum."""
    torch.manual_seed(0)
    with torch.device(device):  # a GPU draws 227 million weights fast
        net = SARJointNet.from_config(cfg, NUM_CLASSES)
    for parameter in (*net.sar_bridge.parameters(), *net.label_bridge.parameters()):
        torch.nn.init.normal_(parameter, std=0.02)
    return net.to(device, dtype)


def teacher_side(is_tiny: bool) -> int:
    return 16 if is_tiny else 256


def batch(size: int, side: int, device: str) -> Batch:
    """A batch of random images and labels."""
    image = torch.randint(0, 256, (size, 1, side, side), dtype=torch.uint8, device=device)
    label = torch.randint(0, NUM_CLASSES, (size, side, side), dtype=torch.uint8, device=device)
    positions = torch.arange(size)
    keys = [str(position) for position in range(size)]
    return Batch(image, positions.to(device), label, keys=keys, host_positions=positions)


def student_batch(size: int, side: int, device: str) -> Batch:
    """The same with soft labels for the second half."""
    num_synthetic = size // 2
    rows = torch.full((size,), -1, dtype=torch.int64)
    rows[size - num_synthetic :] = torch.arange(num_synthetic)
    teacher = torch.randn(num_synthetic, NUM_CLASSES, side, side).half().to(device)
    return batch(size, side, device)._replace(teacher=teacher, teacher_row=rows.to(device))


def noisy_pair(size: int, side: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, y_t and t of a sampling step."""
    x, y = (torch.randn(size, channels, side, side, device=device, dtype=dtype) for channels in (1, NUM_CLASSES))
    return x, y, torch.full((size,), 500, device=device)
