"""SAR-JointNet: two U-Nets, one for the image and one for the label, that exchange features by zero convolutions.

Mechanics after JointNet (Zhang et al., arXiv 2310.06347), in pixel space (paper, section on SAR-JointNet):

- each branch receives the other's noisy input through a 3x3 convolution, added after its own conv_in;
- each branch sends every skip tensor and its middle's output through a 1x1 convolution to the other branch, where they
  are added to that branch's own; both branches first go down, then both go up: one exchange;
- all of these convolutions start at zero, so that the joint net starts as two separate nets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from torch import Tensor, nn

from dakd.models.unet import UNet, UNetSizes

if TYPE_CHECKING:
    from dakd.config import UNetConfig


def zero_conv(c_in: int, c_out: int, kernel_size: int) -> nn.Conv2d:
    """A convolution whose weight and bias start at zero."""
    conv = nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class Bridge(nn.Module):
    """One branch's exchange layers: for the other branch's input, and for the features that it sends."""

    def __init__(self, own: UNet, other_in_channels: int):
        super().__init__()
        mid = own.channels[-1]
        self.hear_input = zero_conv(other_in_channels, own.channels[0], 3)
        self.send_skips = nn.ModuleList(zero_conv(channels, channels, 1) for channels in own.skip_channels)
        self.send_mid = zero_conv(mid, mid, 1)

    def send(self, mid: Tensor, skips: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.send_mid(mid), [conv(skip) for conv, skip in zip(self.send_skips, skips)]


class SARJointNet(nn.Module):
    """x_hat, logits = net(x_t, y_t, t): the clean image from SAR-Net, the label's raw logits from Label-Net.

    sizes: of each branch, by keyword: channels, blocks_per_level, attention_levels, ... of `UNet`.
    """

    def __init__(self, num_classes: int, **sizes: Unpack[UNetSizes]):
        super().__init__()
        self.label_channels = num_classes
        self.sar_net = UNet(1, 1, **sizes)
        self.label_net = UNet(num_classes, num_classes, **sizes)
        self.sar_bridge = Bridge(self.sar_net, num_classes)
        self.label_bridge = Bridge(self.label_net, 1)

    @classmethod
    def from_config(cls, cfg: UNetConfig, num_classes: int) -> SARJointNet:
        """The net of two branches of the section `train_jointnet.unet`."""
        return cls(num_classes, **dict(cfg))

    def forward(self, x_t: Tensor, y_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t: (B, 1, H, W).  y_t: (B, K, H, W) in [-b, b] plus noise.  t: (B,), one for both branches.

        Returns (x_hat (B, 1, H, W), logits (B, K, H, W)). Raises ValueError for other numbers of channels.
        """
        if x_t.shape[1] != 1 or y_t.shape[1] != self.label_channels:
            raise ValueError(
                f"x_t has shape {tuple(x_t.shape)} and y_t {tuple(y_t.shape)}; expected (B, 1, H, W) and "
                f"(B, {self.label_channels}, H, W): give one channel of the image and one of each class"
            )
        return self.denoise(x_t, y_t, self.embed_time(t))

    def embed_time(self, t: Tensor) -> list[Tensor]:
        """(B,) timesteps to the shifts of all residual blocks of both branches, SAR-Net's first."""
        return [*self.sar_net.embed_time(t), *self.label_net.embed_time(t)]

    def denoise(self, x_t: Tensor, y_t: Tensor, shifts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """`forward` with the shifts of `embed_time`; a shift of one row serves the whole batch."""
        num_sar = self.sar_net.num_blocks
        sar_shifts = list(shifts[:num_sar])
        label_shifts = list(shifts[num_sar:])
        sar_mid, sar_skips = self.sar_net.encode(x_t, sar_shifts, self.sar_bridge.hear_input(y_t))
        label_mid, label_skips = self.label_net.encode(y_t, label_shifts, self.label_bridge.hear_input(x_t))
        to_label_mid, to_label = self.sar_bridge.send(sar_mid, sar_skips)
        to_sar_mid, to_sar = self.label_bridge.send(label_mid, label_skips)
        x_hat = self.sar_net.decode(sar_mid + to_sar_mid, _add(sar_skips, to_sar), sar_shifts)
        logits = self.label_net.decode(label_mid + to_label_mid, _add(label_skips, to_label), label_shifts)
        return x_hat, logits

    def start_label_net_from_sar_net(self) -> None:
        """The start of stage 2: Label-Net copies SAR-Net except conv_in and conv_out, whose widths differ (paper)."""
        own = self.label_net.state_dict()
        copied = {
            name: own[name] if name.startswith(("conv_in.", "conv_out.")) else value
            for name, value in self.sar_net.state_dict().items()
        }
        self.label_net.load_state_dict(copied)


def _add(own: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(own, other)]
