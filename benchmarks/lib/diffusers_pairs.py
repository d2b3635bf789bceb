"""The rival of generation: two of diffusers' UNet2DModels and its own scheduler loop, for the image and the label.

The two nets have the widths, blocks and attention of SAR-JointNet's branches, and as many parameters; the bridges
between these they do not have. Everything is written as diffusers' users write it: one scheduler per modality.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dakd.config import UNetConfig
from dakd.diffusion.sampler import to_grey
from dakd.models.encoders import import_beside_torchvision

SCHEDULE = dict(beta_schedule="squaredcos_cap_v2", prediction_type="sample")


def unet2d(cfg: UNetConfig, num_channels: int) -> nn.Module:
    """The UNet2DModel of a branch's sizes, in eval mode.  num_channels: of its input and output."""
    diffusers = _diffusers()
    has_attention = [level in cfg.attention_levels for level in range(len(cfg.channels))]
    return diffusers.UNet2DModel(
        in_channels=num_channels,
        out_channels=num_channels,
        block_out_channels=cfg.channels,
        layers_per_block=cfg.blocks_per_level,
        norm_num_groups=cfg.norm_groups,
        down_block_types=["AttnDownBlock2D" if attends else "DownBlock2D" for attends in has_attention],
        up_block_types=["AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(has_attention)],
    ).eval()


def flop(nets: Sequence[nn.Module], side: int) -> int:
    """FLOP of the nets' forward passes on one image, counted on torch's meta device, where the nets must be."""
    with FlopCounterMode(display=False) as counter:
        for net in nets:
            net(torch.empty(1, net.config.in_channels, side, side, device="meta"), torch.zeros(1, device="meta"))
    return counter.get_total_flops()


def ddim() -> Any:
    """The scheduler of the paper's sampler, leading steps; the loop clamps the estimates of either scheduler."""
    return _diffusers().DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading")


def dpmpp() -> Any:
    """Its DPM-Solver++ of second order on steps uniform in log-SNR, which end at the estimate."""
    return _diffusers().DPMSolverMultistepScheduler(
        **SCHEDULE, algorithm_type="dpmsolver++", solver_order=2, use_lu_lambdas=True, final_sigmas_type="zero"
    )


class PairLoop:
    """A call that samples pairs from new noise: grey values and the labels' last logits, on the host.

    nets: of image and label, which may be compiled ones.  make_scheduler: `ddim` or `dpmpp`.
    steps: of the scheduler, of which the first `timed_steps` are run.  shape: (B, K, H, W) of the label.
    """

    def __init__(
        self,
        nets: tuple[Callable, Callable],
        make_scheduler: Callable[[], Any],
        *,
        steps: int,
        timed_steps: int,
        shape: tuple[int, int, int, int],
        b: float,
        device: str,
        dtype: torch.dtype,
    ):
        self.nets, self.make_scheduler = nets, make_scheduler
        self.steps, self.timed_steps, self.shape, self.b = steps, timed_steps, shape, b
        self.device, self.dtype = device, dtype

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, Tensor]:
        batch, _, height, width = self.shape
        x, y = torch.randn(batch, 1, height, width, device=self.device), torch.randn(self.shape, device=self.device)
        schedulers = self.make_scheduler(), self.make_scheduler()
        for scheduler in schedulers:
            scheduler.set_timesteps(self.steps)
        image_net, label_net = self.nets
        # Timesteps stay on the host: one on a GPU would synchronise at every step.
        for t in schedulers[0].timesteps[: self.timed_steps]:
            x_hat = image_net(x.to(self.dtype), t, return_dict=False)[0].float().clamp(-1, 1)
            logits = label_net(y.to(self.dtype), t, return_dict=False)[0].float()
            y_hat = self.b * (2 * logits.softmax(1) - 1)
            x = schedulers[0].step(x_hat, t, x, return_dict=False)[0]
            y = schedulers[1].step(y_hat, t, y, return_dict=False)[0]
        return to_grey(x).cpu(), logits.cpu()


def _diffusers() -> Any:
    return import_beside_torchvision("diffusers", "the rival of generation", "dev")
