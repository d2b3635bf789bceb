"""Floors by hand: the bytes and FLOP that the tables claim, at the shapes that count."""

from __future__ import annotations

import pytest
import roofline

from dakd.kernels import backend
from dakd.testing.inputs import SHAPES

RATES = roofline.Rates(copy_tb_s=4.3, matmul_tflop_s=790)
MAP = 16 * 128 * 128 * 128 * 2  # bytes of the bf16 map that CAFT's main shape refines


def us(num_bytes: int) -> float:
    return float(RATES.us(num_bytes))


def test_caft_core_of_the_model_moves_three_and_a_half_maps_forward_and_five_backward():
    work = roofline.transposed_attention(16, 64, 128, 128, 128, 1)
    assert (work.forward_bytes, work.backward_bytes) == (3.5 * MAP, 5 * MAP)
    assert (us(work.forward_bytes), us(work.bytes("forward+backward"))) == (54.6, 132.7)
    assert work.forward_flop == 2 * 16 * 128 * 128 * (64 * 64 + 128 * 64)
    assert us(roofline.transposed_attention(1, 64, 128, 168, 320, 1).forward_bytes) == 11.2


def test_whole_caft_block_moves_six_and_three_quarter_maps():
    assert roofline.caft_block(16, 128, 128, 128).forward_bytes == 6.75 * MAP


@pytest.mark.parametrize(
    ("batch", "num_classes", "megabytes", "floor_us"),
    [(1, 5, 4.7, 1.1), (16, 5, 75.5, 17.6), (64, 5, 302.0, 70.2), (256, 5, 1208.0, 280.9)],
)
def test_ddim_step_moves_twelve_bytes_a_number(batch, num_classes, megabytes, floor_us):
    count = roofline.ddim_step(batch, num_classes, 256, 256).forward_bytes
    assert count == batch * 256 * 256 * 12 * (1 + num_classes)
    assert (round(count / 1e6, 1), us(count)) == (megabytes, floor_us)


def test_a_step_of_second_order_reads_two_bytes_a_number_more():
    first, second = (roofline.ddim_step(2, 5, 8, 8, order=order).forward_bytes for order in (1, 2))
    assert second - first == 2 * 8 * 8 * 2 * (1 + 5)


def test_fp32_sampler_writes_its_state_once():
    assert roofline.ddim_step(1, 5, 1, 1, feature_bytes=4).forward_bytes == 6 * (4 + 4 + 4)


def test_seg_loss_reads_labels_of_real_samples_and_the_teacher_of_synthetic_ones():
    real, synthetic = roofline.seg_loss(1, 0, 5, 1, 1), roofline.seg_loss(1, 1, 5, 1, 1)
    assert (real.forward_bytes, real.backward_bytes) == (11, 21)
    assert (synthetic.forward_bytes, synthetic.backward_bytes) == (20, 30)
    assert roofline.seg_loss(2, 1, 5, 512, 512).bytes("forward+backward") == (11 + 21 + 20 + 30) * 512 * 512


def test_noising_moves_fourteen_bytes_a_pixel_of_five_classes():
    count = roofline.joint_noising(16, 5, 256, 256).forward_bytes
    assert count == 14 * 16 * 256 * 256 and us(count) == 3.4


@pytest.mark.parametrize(
    ("sizes", "memory_us", "special_us"),
    [((16, 256, 8, 1024), 6.0, 10.0), ((144, 256, 8, 196), 10.3, 17.3), ((144, 512, 8, 49), 5.1, 8.6)],
)
def test_scan_is_bound_by_special_functions(sizes, memory_us, special_us):
    assert us(roofline.selective_scan(*sizes).forward_bytes) == memory_us
    assert round(roofline.scan_special_functions(*sizes) / roofline.SFU_PER_S * 1e6, 1) == special_us


@pytest.mark.parametrize(
    ("sizes", "three_us", "two_us", "conv_us"),
    [
        ((16, 128, 256, 256), 187.3, 124.9, 559.2),
        ((16, 256, 128, 128), 93.6, 62.4, 559.2),
        ((16, 256, 64, 64), 23.4, 15.6, 139.8),
        ((16, 512, 32, 32), 11.7, 7.8, 139.8),
    ],
)
def test_group_norm_passes_and_the_convolution_beside_them(sizes, three_us, two_us, conv_us):
    passes = [us(roofline.group_norm_silu(*sizes, passes=passes).forward_bytes) for passes in (3, 2)]
    assert passes == [three_us, two_us]
    assert float(RATES.flop_us(roofline.conv3x3_flop(*sizes), 0.7)) == conv_us


def test_jointnet_of_the_papers_size_costs_a_teraflop_a_step():
    whole, branches = roofline.jointnet_flop(), roofline.jointnet_flop(bridges=False)
    assert branches == pytest.approx(0.993e12, rel=2e-3)
    assert 1.02 < whole / branches < 1.03  # what the bridges cost
    assert roofline.images_per_s(branches, 200, 790, 1.0) == pytest.approx(3.98, rel=2e-3)
    stage2, stage3 = (roofline.jointnet_flop(stage=stage) for stage in (2, 3))
    assert stage3 == pytest.approx(3 * whole, rel=1e-3)
    assert stage2 / stage3 == pytest.approx(2.48 / 2.98, rel=1e-2)


@pytest.mark.parametrize("op", backend.OPS)
def test_every_room_has_its_least_bytes(op):
    for name, sizes in SHAPES[op].items():
        forward, both = (roofline.least_bytes(op, sizes, what, 4) for what in ("forward", "forward+backward"))
        assert forward <= both and (forward > 0) == (sizes["batch"] > 0), name


def test_tables_say_that_they_are_no_measurements(capsys):
    roofline.print_tables(RATES)
    assert "arithmetic, not measurements" in capsys.readouterr().out
