"""Floors: the least bytes and the arithmetic of every op, and the time that they take at stated rates.

    python benchmarks/roofline.py [--copy-tb-s 4.3] [--matmul-tflop-s 790]

Nothing here is measured. A floor is arithmetic: every operand read once a pass, every result written once, over a copy
bandwidth and a matrix rate that the reader supplies (the defaults are the hypothesis for one H200). A benchmark divides
the same bytes by its own time and by the copy bandwidth of its own run ("% of copy").
"""

from __future__ import annotations

import argparse
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
    """Of an op at sizes as in dakd.testing.inputs.SHAPES, on the path that the models take."""
    return WORK[op](**sizes, feature_bytes=feature_bytes).bytes(what)


def transposed_attention(
    batch: int,
    inner: int,
    channels: int,
    height: int,
    width: int,
    num_heads: int,
    feature_bytes: int = 2,
    query_is_low: bool = False,
) -> Work:
    """CAFT's core with the output projection folded into the attention matrix.

    Forward: q and k are read for the Gram matrix, then v and the residual, and the result is written. Backward: dY and
    v are read; then dY, q, k again, and dq, dk, dv are written (the residual's gradient is dY itself).
    query_is_low: q is read on a grid of half the height and width and upsampled on the way.
    """
    pixels = batch * height * width
    narrow, wide = pixels * inner * feature_bytes, pixels * channels * feature_bytes
    query = narrow // 4 if query_is_low else narrow
    gram, apply = 2 * pixels * inner * (inner // num_heads), 2 * pixels * channels * inner
    return Work(
        query + 2 * narrow + 2 * wide,
        2 * wide + 2 * query + 4 * narrow,
        gram + apply,
        2 * (gram + apply),
    )


def caft_block(batch: int, channels: int, height: int, width: int, feature_bytes: int = 2) -> Work:
    """A CAFT node of inner width C / 2 below a map of 2 C channels, its depthwise convolutions computed on load.

    1x1 for k and v (C read, C written), 1x1 for q on the low grid (C / 2 read, C / 8 written), its upsampling (C / 8
    read, C / 2 written), then the core.
    """
    size = batch * channels * height * width * feature_bytes
    core = transposed_attention(batch, channels // 2, channels, height, width, 1, feature_bytes)
    return Work(2 * size + size * 5 // 8 + size * 5 // 8 + core.forward_bytes)


def ddim_step(
    batch: int, num_classes: int, height: int, width: int, feature_bytes: int = 2, state_bytes: int = 4
) -> Work:
    """State read and written, the networks' outputs read, their next inputs written where these are not the state."""
    inputs = feature_bytes if feature_bytes != state_bytes else 0
    return Work(batch * height * width * (1 + num_classes) * (2 * state_bytes + feature_bytes + inputs))


def seg_loss(
    batch: int,
    synthetic: int,
    num_classes: int,
    height: int,
    width: int,
    feature_bytes: int = 2,
    teacher_bytes: int = 2,
    all_have_both: bool = False,
) -> Work:
    """Two passes over the logits and what they are compared with; the second writes their gradient.

    A real sample's labels (one byte a pixel) and a synthetic one's teacher logits are read; with all_have_both, both of
    every sample.
    """
    pixels = height * width
    labelled, taught = (batch, batch) if all_have_both else (batch - synthetic, synthetic)
    logits = batch * pixels * num_classes * feature_bytes
    read = logits + labelled * pixels + taught * pixels * num_classes * teacher_bytes
    return Work(read, read + logits)


def joint_noising(batch: int, num_classes: int, height: int, width: int, feature_bytes: int = 2) -> Work:
    """One byte of image and one of label read a pixel, 1 + K noisy numbers written; the noise is never stored."""
    return Work(batch * height * width * (2 + (1 + num_classes) * feature_bytes))


def selective_scan(batch: int, channels: int, states: int, length: int, feature_bytes: int = 2) -> Work:
    """u, delta, B, C read, y written; backward reads these and dy and writes their gradients."""
    sequence, shared = batch * channels * length * feature_bytes, 2 * batch * states * length * feature_bytes
    return Work(3 * sequence + shared, 5 * sequence + 2 * shared)


def scan_special_functions(batch: int, channels: int, states: int, length: int) -> int:
    """exp of every state, and two for softplus: what bounds the scan before memory does."""
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
    """Of a 3x3 convolution that keeps its channels."""
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

CAFT_FULL_WIDTH = (
    (1, 128, 160, 312),
    (1, 256, 80, 156),
    (1, 512, 40, 78),
    (16, 128, 128, 128),
    (16, 256, 64, 64),
    (16, 512, 32, 32),
    (16, 128, 64, 64),
)
CAFT_OF_THE_MODEL = (
    (16, 128, 128, 128),
    (16, 256, 64, 64),
    (16, 512, 32, 32),
    (1, 128, 168, 320),
    (1, 256, 84, 160),
    (1, 512, 42, 80),
    (16, 128, 64, 64),
    (16, 256, 32, 32),
    (16, 512, 16, 16),
)
DDIM = ((1, 5), (16, 5), (64, 5), (256, 5), (64, 2))
SEG_LOSS = ((16, 5, 512, 512), (16, 2, 256, 256), (16, 5, 640, 1248))
SCANS = ((16, 256, 8, 1024), (144, 256, 8, 196), (144, 512, 8, 49), (1, 512, 8, 780))
NORMS = ((16, 128, 256, 256), (16, 256, 128, 128), (16, 256, 64, 64), (16, 512, 32, 32))


class Rates(NamedTuple):
    """What floors are taken against: copy bandwidth in TB/s, matrix rate in TFLOP/s."""

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
    for table in (_print_caft, _print_pixelwise, _print_scans, _print_norms, _print_jointnet):
        table(rates)


def _print_caft(rates: Rates) -> None:
    print("\nCAFT core, as in the model: inner width C/2, 64 channels a head, query at full size")
    print(f"{'(B, C, H, W)':<22}{'MB f':>9}{'f us':>9}{'b us':>9}{'f+b us':>9}{'flop f us':>10}")
    for batch, channels, height, width in CAFT_OF_THE_MODEL:
        _print_caft_row(
            rates,
            (batch, channels, height, width),
            transposed_attention(batch, channels // 2, channels, height, width, channels // 128),
        )
    print("\nCAFT core at full width: inner width C, 32 channels a head, query on the low grid")
    for batch, channels, height, width in CAFT_FULL_WIDTH:
        work = transposed_attention(batch, channels, channels, height, width, channels // 32, query_is_low=True)
        _print_caft_row(rates, (batch, channels, height, width), work)
    block = caft_block(16, 128, 128, 128)
    print(f"\nwhole CAFT block at (16, 128, 128, 128), forward: {rates.us(block.forward_bytes).strip()} us")


def _print_caft_row(rates: Rates, shape: tuple[int, ...], work: Work) -> None:
    times = [rates.us(count) for count in (work.forward_bytes, work.backward_bytes, work.bytes("forward+backward"))]
    print(f"{shape!s:<22}{work.forward_bytes / 1e6:>9.1f}{''.join(times)}{rates.flop_us(work.forward_flop):>10}")


def _print_pixelwise(rates: Rates) -> None:
    print("\nDDIM step of both modalities at 256 x 256: fp32 state, bf16 outputs read and inputs written")
    for batch, num_classes in DDIM:
        count = ddim_step(batch, num_classes, 256, 256).forward_bytes
        print(f"B {batch:<4}K {num_classes}{count / 1e6:>12.1f} MB{rates.us(count)} us")
    print("\nCE + distillation + Dice, f+b, fp16 teacher: every sample with both targets; half real, half synthetic")
    for batch, num_classes, height, width in SEG_LOSS:
        both = seg_loss(batch, batch, num_classes, height, width, all_have_both=True).bytes("forward+backward")
        mixed = seg_loss(batch, batch // 2, num_classes, height, width).bytes("forward+backward")
        shares = [f"{count / (batch * height * width):>6.0f} B/px{rates.us(count)} us" for count in (both, mixed)]
        print(f"{f'{batch} x {num_classes} x {height} x {width}':<22}{'   '.join(shares)}")
    print("\nNoising of both modalities at 256 x 256, K 5")
    for batch in (16, 256):
        count = joint_noising(batch, 5, 256, 256).forward_bytes
        print(f"B {batch:<4}{count / 1e6:>12.1f} MB{rates.us(count)} us")


def _print_scans(rates: Rates) -> None:
    print("\nSelective scan: memory, and special functions at 132 SMs x 16 x 1.98 GHz")
    print(f"{'(B, D, N, L)':<22}{'f us':>9}{'f+b us':>9}{'special f us':>14}")
    for sizes in SCANS:
        work = selective_scan(*sizes)
        special_us = scan_special_functions(*sizes) / SFU_PER_S * 1e6
        times = rates.us(work.forward_bytes) + rates.us(work.bytes("forward+backward"))
        print(f"{sizes!s:<22}{times}{special_us:>14.1f}")


def _print_norms(rates: Rates) -> None:
    print("\nGroupNorm + SiLU, and the 3x3 convolution beside it at 70 % of the matrix rate")
    print(f"{'(B, C, H, W)':<22}{'MB':>9}{'3 passes':>9}{'2 passes':>9}{'conv us':>9}{'norm/conv':>10}")
    for sizes in NORMS:
        three, two = (group_norm_silu(*sizes, passes=passes).forward_bytes for passes in (3, 2))
        conv = rates.flop_us(conv3x3_flop(*sizes), 0.7)
        share = float(rates.us(three)) / float(conv)
        print(f"{sizes!s:<22}{three / 3e6:>9.1f}{rates.us(three)}{rates.us(two)}{conv}{share:>10.0%}")


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
