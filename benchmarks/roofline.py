"""Floors: the least bytes and FLOP of every op, and the time that they take at given rates.

    python benchmarks/roofline.py [--copy-tb-s 4.3] [--matmul-tflop-s 790]

Nothing here is measured. A floor is arithmetic: every operand is read once a pass and every result written once, at a
copy bandwidth and a matrix rate that the reader supplies (the defaults are a guess for one H200). A benchmark divides
the same bytes by its own time and by the copy bandwidth of its own run ("% of copy").
"""

from __future__ import annotations

import argparse
import inspect
import math
from typing import NamedTuple

COPY_TB_S = 4.3
MATMUL_TFLOP_S = 790.0
# Special functions (exp, log, ...) of one H200: 132 multiprocessors, 16 a clock each, 1.98 GHz.
SFU_PER_S = 132 * 16 * 1.98e9


class Work(NamedTuple):
    """Least bytes to and from memory, and floating-point operations of matrix products."""

    forward_bytes: int
    backward_bytes: int = 0
    forward_flop: int = 0
    backward_flop: int = 0

    def bytes(self, what: str) -> int:
        """what: "forward" or "forward+backward"."""
        return self.forward_bytes + (self.backward_bytes if what == "forward+backward" else 0)


def least_bytes(op: str, sizes: dict[str, int], what: str, feature_bytes: int = 2) -> int:
    """The least bytes of an op at sizes as in dakd.testing.inputs.SHAPES."""
    return WORK[op](**sizes, feature_bytes=feature_bytes).bytes(what)


def transposed_attention(
    batch: int,
    inner: int,
    channels: int,
    height: int,
    width: int,
    num_heads: int,
    feature_bytes: int = 2,
) -> Work:
    """CAFT's core with the output projection folded into the attention matrix.

    Forward: q and k are read for the Gram matrix, then v and the residual, and the result is written. Backward: dY and
    v are read; then dY, q, k again, and dq, dk, dv are written (the residual's gradient is dY itself).
    """
    pixels = batch * height * width
    narrow, wide = pixels * inner * feature_bytes, pixels * channels * feature_bytes
    flop = 2 * pixels * inner * (inner // num_heads) + 2 * pixels * channels * inner  # the Gram matrix, and its use
    return Work(3 * narrow + 2 * wide, 2 * wide + 6 * narrow, flop, 2 * flop)


def caft_block(batch: int, channels: int, height: int, width: int, feature_bytes: int = 2) -> Work:
    """A CAFT node of inner width C / 2 below a map of 2 C channels, its depthwise convolutions computed on load.

    1x1 for k and v (C read, C written), 1x1 for q on the low grid (C / 2 read, C / 8 written), its upsampling (C / 8
    read, C / 2 written), then the core.
    """
    size = batch * channels * height * width * feature_bytes
    core = transposed_attention(batch, channels // 2, channels, height, width, 1, feature_bytes)
    return Work(2 * size + size * 5 // 8 + size * 5 // 8 + core.forward_bytes)


def ddim_step(
    batch: int,
    num_classes: int,
    height: int,
    width: int,
    order: int = 1,
    feature_bytes: int = 2,
    state_bytes: int = 4,
) -> Work:
    """State read and written, the networks' outputs read, their next inputs written unless these are the state.

    order: of the solver; 2 also reads the networks' outputs of the step before.
    """
    inputs = feature_bytes if feature_bytes != state_bytes else 0
    return Work(batch * height * width * (1 + num_classes) * (2 * state_bytes + order * feature_bytes + inputs))


def seg_loss(
    batch: int,
    synthetic: int,
    num_classes: int,
    height: int,
    width: int,
    feature_bytes: int = 2,
    teacher_bytes: int = 2,
) -> Work:
    """Two passes over the logits and their targets; the second writes the logits' gradient.

    Targets are a real sample's labels (one byte a pixel) and a synthetic one's teacher logits.
    """
    pixels = height * width
    logits = batch * pixels * num_classes * feature_bytes
    read = logits + (batch - synthetic) * pixels + synthetic * pixels * num_classes * teacher_bytes
    return Work(read, read + logits)


def joint_noising(batch: int, num_classes: int, height: int, width: int, feature_bytes: int = 2) -> Work:
    """One byte of image and one of label read a pixel, 1 + K noisy numbers written; the noise is never stored."""
    return Work(batch * height * width * (2 + (1 + num_classes) * feature_bytes))


def selective_scan(batch: int, channels: int, states: int, length: int, feature_bytes: int = 2) -> Work:
    """u, delta, B, C read, y written; backward reads these and dy and writes their gradients."""
    sequence, shared = batch * channels * length * feature_bytes, 2 * batch * states * length * feature_bytes
    return Work(3 * sequence + shared, 5 * sequence + 2 * shared)


def scan_special_functions(batch: int, channels: int, states: int, length: int) -> int:
    """exp of every state, and two for softplus: these bound the scan before memory does."""
    return batch * channels * length * (states + 2)


def depthwise_conv1d(batch: int, channels: int, length: int, feature_bytes: int = 2) -> Work:
    """x read, y written; backward reads x and dy and writes dx."""
    sequence = batch * channels * length * feature_bytes
    return Work(2 * sequence, 3 * sequence)


def group_norm_silu(
    batch: int, channels: int, height: int, width: int, feature_bytes: int = 2, passes: int = 3
) -> Work:
    """Three passes read the map for its statistics, again for the result, and write; two have the statistics given.

    Backward reads x and dy for the sums, both again, and writes dx.
    """
    size = batch * channels * height * width * feature_bytes
    return Work(passes * size, 5 * size)


def conv3x3_flop(batch: int, channels: int, height: int, width: int) -> int:
    """FLOP of a 3x3 convolution with as many outputs as inputs."""
    return 2 * 9 * channels**2 * batch * height * width


WORK = {
    "transposed_attention": transposed_attention,
    "ddim_step": ddim_step,
    "seg_loss": seg_loss,
    "joint_noising": joint_noising,
    "selective_scan": selective_scan,
    "depthwise_conv1d": depthwise_conv1d,
}


def jointnet_flop(
    unet=None, num_classes: int = 5, size: tuple[int, int] = (256, 256), stage: int | None = None, bridges: bool = True
) -> int:
    """FLOP of SAR-JointNet on one pair, counted on torch's meta device; the default is the paper's size.

    unet: a dakd.config.UNetConfig.  stage: None counts a forward pass; 2 and 3 a forward and a backward pass of that
    stage (SAR-Net stands still in stage 2).  bridges: False counts the two branches alone, forward.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dakd.config import UNetConfig
    from dakd.models.jointnet import SARJointNet

    with torch.device("meta"):
        net = SARJointNet.from_config(unet or UNetConfig(), num_classes)
        x, y = torch.empty(1, 1, *size), torch.empty(1, num_classes, *size)
        t = torch.zeros(1, dtype=torch.int64)
    if stage == 2:
        net.sar_net.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        outputs = net(x, y, t) if bridges else (net.sar_net(x, t), net.label_net(y, t))
        if stage is not None:
            sum(output.sum() for output in outputs).backward()
    return counter.get_total_flops()


def images_per_s(flop_per_step: float, num_steps: int, matmul_tflop_s: float, share: float) -> float:
    """Pairs a second of a sampler that runs at `share` of the matrix rate."""
    return matmul_tflop_s * 1e12 * share / (flop_per_step * num_steps)


# -- tables -----------------------------------------------------------------------------------------------------------

NORMS = ((16, 128, 256, 256), (16, 256, 128, 128), (16, 256, 64, 64), (16, 512, 32, 32))
# Shapes by op, in the order of the function's parameters.
SHAPES = {
    "transposed_attention": [
        (batch, channels // 2, channels, height, width, channels // 128)
        for batch, channels, height, width in (
            (16, 128, 128, 128), (16, 256, 64, 64), (16, 512, 32, 32), (1, 128, 168, 320), (16, 128, 64, 64),
        )
    ],
    "ddim_step": [(batch, num_classes, 256, 256) for batch, num_classes in ((1, 5), (16, 5), (64, 5), (64, 2))],
    "seg_loss": [(16, 8, 5, 512, 512), (16, 8, 2, 256, 256), (16, 8, 5, 640, 1248)],
    "joint_noising": [(16, 5, 256, 256), (256, 5, 256, 256)],
    "selective_scan": [(16, 256, 8, 1024), (144, 256, 8, 196), (144, 512, 8, 49), (1, 512, 8, 780)],
    "depthwise_conv1d": [(144, 256, 196), (144, 512, 49)],
}  # fmt: skip


class Rates(NamedTuple):
    """The rates behind the floors: copy bandwidth in TB/s, matrix rate in TFLOP/s."""

    copy_tb_s: float = COPY_TB_S
    matmul_tflop_s: float = MATMUL_TFLOP_S

    def us(self, num_bytes: float) -> str:
        return f"{num_bytes / self.copy_tb_s / 1e6:9.1f}"

    def flop_us(self, flop: float, share: float = 1.0) -> str:
        return f"{flop / (self.matmul_tflop_s * share) / 1e6:9.1f}"


def print_tables(rates: Rates) -> None:
    print("Floors in microseconds: arithmetic, not measurements.")
    print(f"Copy bandwidth {rates.copy_tb_s:g} TB/s (read + written), matrix rate {rates.matmul_tflop_s:g} TFLOP/s, "
          "bf16 features.")  # fmt: skip
    for op, shapes in SHAPES.items():
        parameters = inspect.signature(WORK[op]).parameters
        print(f"\n{op} ({', '.join(list(parameters)[: len(shapes[0])])})")
        print(f"{'':<28}{'MB f':>9}{'f us':>9}{'b us':>9}{'f+b us':>9}  matrix products f us")
        for shape in shapes:
            work = WORK[op](*shape)
            counts = (work.forward_bytes, work.backward_bytes, work.bytes("forward+backward"))
            flop_us = rates.flop_us(work.forward_flop) if work.forward_flop else ""
            print(f"{shape!s:<28}{counts[0] / 1e6:>9.1f}{''.join(map(rates.us, counts))}{flop_us}")
    _print_special_functions()
    _print_norms(rates)
    _print_jointnet(rates)


def _print_special_functions() -> None:
    print("\nSpecial functions of a scan's forward pass, at 132 multiprocessors x 16 x 1.98 GHz")
    for shape in SHAPES["selective_scan"]:
        print(f"{shape!s:<28}{scan_special_functions(*shape) / SFU_PER_S * 1e6:>9.1f} us")


def _print_norms(rates: Rates) -> None:
    print("\nGroupNorm + SiLU, and the 3x3 convolution after it at 70 % of the matrix rate")
    print(f"{'(B, C, H, W)':<28}{'3 passes':>9}{'2 passes':>9}{'conv us':>9}{'norm/conv':>10}")
    for shape in NORMS:
        three, two = (rates.us(group_norm_silu(*shape, passes=passes).forward_bytes) for passes in (3, 2))
        conv = rates.flop_us(conv3x3_flop(*shape), 0.7)
        print(f"{shape!s:<28}{three}{two}{conv}{float(three) / float(conv):>10.0%}")


def _print_jointnet(rates: Rates) -> None:
    step, branches, *stages = (
        jointnet_flop(**choice) / 1e12 for choice in ({}, {"bridges": False}, {"stage": 2}, {"stage": 3})
    )
    print("\nSAR-JointNet at the paper's size, 256 x 256, one pair")
    print(f"{step:.3f} TFLOP a step, of which the two branches {branches:.3f}; "
          f"training: stage 2 {stages[0]:.2f}, stage 3 {stages[1]:.2f}")  # fmt: skip
    for share in (0.4, 0.5, 0.6, 0.7, 1.0):
        rate = images_per_s(step * 1e12, 200, rates.matmul_tflop_s, share)
        training = rates.matmul_tflop_s * share / stages[1]
        print(f"at {share:4.0%} of the matrix rate: {rate:5.2f} pairs/s of 200 steps, "
              f"4,480 pairs in {math.ceil(4480 / rate / 60)} min; stage 3 {training:4.0f} img/s")  # fmt: skip


def _parse() -> Rates:
    parser = argparse.ArgumentParser(description="Prints least bytes, FLOP and floors in microseconds.")
    parser.add_argument("--copy-tb-s", type=float, default=COPY_TB_S, help="copy bandwidth, bytes read plus written")
    parser.add_argument("--matmul-tflop-s", type=float, default=MATMUL_TFLOP_S, help="bf16 matrix rate")
    return Rates(**vars(parser.parse_args()))


if __name__ == "__main__":
    print_tables(_parse())
