"""Soft labels keep what their codec states, in softened targets and in the student's losses, or they are refused."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import zstandard
from fixed_logits import BareStudent
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dakd.config import StudentLossConfig
from dakd.data.datasets import StudentDataset
from dakd.data.index import save_index
from dakd.data.loader import make_loader
from dakd.data.sample import OSD_CLASSES, ClassTable, Sample
from dakd.data.shards import ShardSet, describe_shard, write_index, write_shard, write_shards
from dakd.data.soft_labels import (
    LogProb8Codec,
    check_temperature,
    fp16_target_error,
    get_codec,
    kd_error,
    likeliest_class,
    max_target_error,
    range_for,
    target_error,
    to_half,
)
from dakd.kernels.seg_loss import seg_loss
from dakd.train.batch_loss import StudentLoss

TEMPERATURES = (1.0, 2.0, 4.0)
# What float arithmetic adds to a bound that real numbers keep.
ROUNDING = 1e-6


def softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp((logits - logits.max(axis=0)) / temperature)
    return weights / weights.sum(axis=0)


def decoded(logits: np.ndarray, codec) -> np.ndarray:
    """The logits, up to a constant a pixel, that the stored bytes stand for; float64."""
    stored, soft_range = codec.decode(codec.encode(logits), logits.shape)
    stored = stored.astype(np.float64)
    return stored if soft_range is None else -stored * soft_range / 255


def errors(logits: np.ndarray, back: np.ndarray, temperature: float) -> tuple[float, float]:
    """The largest error of a class, and the largest total variation."""
    difference = np.abs(softened(logits.astype(np.float64), temperature) - softened(back, temperature))
    return difference.max(), difference.sum(axis=0).max() / 2


def piecewise_logits(num_classes: int, seed: int, size: int = 64) -> np.ndarray:
    """Regions of one class with soft edges under small noise, as a trained teacher draws them."""
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(num_classes, size // 8, size // 8)).repeat(8, axis=1).repeat(8, axis=2)
    for axis, _ in itertools.product((1, 2), range(4)):
        field = (field + np.roll(field, 1, axis)) / 2
    return (12 * field + rng.normal(0, 0.15, field.shape)).astype(np.float32)


@st.composite
def any_logits(draw) -> np.ndarray:
    num_classes = draw(st.sampled_from([2, 3, 5, 10, 11, 12, 20, 255]))
    scale = draw(st.sampled_from([0.0, 1e-3, 0.1, 1.0, 5.0, 30.0, 1e4, 1e37]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(0, 1, (num_classes, 4, 8)) * scale + draw(st.sampled_from([0.0, -50.0, 1000.0]))
    if draw(st.booleans()):  # ties, and gaps that lie on the edges of steps
        logits = np.round(logits * 4) / 4
    return logits.astype(draw(st.sampled_from([np.float32, np.float64])))


@settings(max_examples=300, deadline=None)
@given(logits=any_logits(), temperature=st.sampled_from(TEMPERATURES), written_for=st.sampled_from(TEMPERATURES))
def test_softened_targets_from_codes_are_off_by_no_more_than_stated(logits, temperature, written_for):
    codec = LogProb8Codec(written_for)
    bound = target_error(range_for(written_for, len(logits)), temperature, len(logits))
    of_a_class, variation = errors(logits, decoded(logits, codec), temperature)
    assert of_a_class <= variation + ROUNDING and variation <= bound + ROUNDING
    if temperature == written_for:
        assert bound <= max_target_error(len(logits))


def test_the_range_grows_with_the_classes_and_its_error_is_the_least_there_is():
    assert [range_for(2.0, num_classes) for num_classes in (1, 2, 10)] == [18.4] * 3  # as files hold it
    assert range_for(1.0, 11) < range_for(1.0, 12) < range_for(1.0, 255)
    for num_classes in (11, 12, 20, 255):
        least = min(target_error(9 + step / 100, 1.0, num_classes) for step in range(400))
        stated = target_error(range_for(1.0, num_classes), 1.0, num_classes)
        assert stated == pytest.approx(least, rel=1e-4) and stated < max_target_error(num_classes) < 0.0134
    assert max_target_error(10) == 0.01 and max_target_error(12) == pytest.approx(0.01013, abs=1e-5)


@pytest.mark.parametrize("num_classes", [10, 11, 12, 20, 255])
def test_a_student_takes_codes_at_the_temperature_that_they_were_written_for(num_classes):
    for temperature in (0.3, 1.0, 2.0, 7.0):
        codec = LogProb8Codec(temperature)
        logits = np.random.default_rng(0).normal(0, 3, (num_classes, 2, 2)).astype(np.float32)
        soft_range = codec.decode(codec.encode(logits), logits.shape)[1]
        check_temperature(soft_range, [temperature], num_classes)
        with pytest.raises(ValueError, match=f"were written for the temperature {temperature:g}; softened by"):
            check_temperature(soft_range, [temperature / 2], num_classes)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_stated_error_is_not_much_more_than_what_the_worst_logits_have(temperature):
    """Two classes half a step apart at the same height, and one cut off at the range: each attains its part."""
    codec, soft_range = LogProb8Codec(temperature), range_for(temperature, 4)
    step = soft_range / 255
    halfway = np.array([0.0, -0.499 * step]).reshape(2, 1, 1)
    cut = np.array([0.0, -1e3, -1e3, -1e3]).reshape(4, 1, 1)
    of_steps = errors(halfway, decoded(halfway, codec), temperature)[1]
    of_clipping = errors(cut, decoded(cut, codec), temperature)[1]
    assert of_steps > 0.4 * (target_error(soft_range, temperature, 2) - 1e-4)
    assert of_clipping > 0.9 * (target_error(soft_range, temperature, 4) - target_error(soft_range, temperature, 1))


@settings(max_examples=100, deadline=None)
@given(logits=any_logits(), temperature=st.sampled_from(TEMPERATURES))
def test_softened_targets_from_half_precision_are_off_by_no_more_than_stated(logits, temperature):
    logits = logits.astype(np.float64)
    logits *= min(1.0, 60000 / max(1e-30, np.abs(logits).max()))
    bound = fp16_target_error(np.abs(logits).max(), temperature)
    assert errors(logits, decoded(logits, get_codec("fp16")), temperature)[1] <= bound + ROUNDING


@settings(max_examples=50, deadline=None)
@given(logits=any_logits(), seed=st.integers(0, 1000), temperature=st.sampled_from(TEMPERATURES))
def test_distillation_loss_from_codes_is_off_by_no_more_than_stated(logits, seed, temperature):
    logits = np.clip(logits, -1e4, 1e4)
    codec, num_classes = LogProb8Codec(temperature), len(logits)
    codes, soft_range = codec.decode(codec.encode(logits), logits.shape)
    codes = torch.from_numpy(codes)[None]
    student = torch.randn(1, *logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5
    labels, row = torch.full((1, *logits.shape[1:]), 255), torch.tensor([0])
    options = dict(temperature=temperature, backend="reference")
    exact = seg_loss(student, labels, torch.from_numpy(logits)[None].double(), row, **options).kd
    coded = seg_loss(student, labels, codes, row, teacher_range=soft_range, **options).kd
    spread = float((student.amax(1) - student.amin(1)).max())
    stated = kd_error(target_error(soft_range, temperature, num_classes), temperature, spread)
    assert abs(float(exact - coded)) <= stated + ROUNDING


def test_codes_are_half_a_step_from_the_gaps_and_saturate_beyond_the_range():
    logits = np.random.default_rng(0).normal(0, 6, (5, 16, 16)).astype(np.float32)
    codec, soft_range = LogProb8Codec(2.0), range_for(2.0, 5)
    gap, back = logits.max(axis=0) - logits, -decoded(logits, codec)
    inside = gap <= soft_range
    assert np.abs(gap - back)[inside].max() <= soft_range / 510 * (1 + 1e-5)
    assert (~inside).any() and (back[~inside] == soft_range).all()
    assert (back.min(axis=0) == 0).all()


def test_half_precision_logits_that_lie_far_apart_do_not_overflow():
    logits = np.array([60000.0, -60000.0]).reshape(2, 1, 1)
    codec = LogProb8Codec(1.0)
    for dtype in (np.float16, np.float32, np.float64):
        assert codec.decode(codec.encode(logits.astype(dtype)), (2, 1, 1))[0].ravel().tolist() == [0, 255]
    huge = (logits / 60000 * 3e38).astype(np.float32)
    assert codec.decode(codec.encode(huge), (2, 1, 1))[0].ravel().tolist() == [0, 255]


@pytest.mark.parametrize("num_classes", [2, 5])
def test_codes_of_drawn_regions_take_less_than_half_of_half_precision(num_classes):
    logits = piecewise_logits(num_classes, seed=1, size=128)
    share = len(LogProb8Codec(2.0).encode(logits)) / len(get_codec("fp16").encode(logits))
    assert share <= 0.47
    constant = np.zeros((5, 128, 128), np.float32)
    assert len(LogProb8Codec(2.0).encode(constant)) < 200


def test_hard_labels_of_codes_are_the_logits_own_wherever_a_class_leads_by_half_a_step():
    logits = np.random.default_rng(3).normal(0, 1, (5, 64, 64)).astype(np.float32)
    codec, soft_range = LogProb8Codec(4.0), range_for(4.0, 5)
    found = likeliest_class(codec.decode(codec.encode(logits), logits.shape)[0])
    first, second = np.sort(logits, axis=0)[[-1, -2]]
    leads = first - second > soft_range / 510 * (1 + 1e-5)
    assert found.dtype == np.uint8 and (found == likeliest_class(logits))[leads].all()
    behind = first - np.take_along_axis(logits, found[None].astype(np.int64), 0)[0]
    assert behind.max() <= soft_range / 510 * (1 + 1e-5)
    tie = np.zeros((3, 1, 1), np.float32)
    assert likeliest_class(codec.decode(codec.encode(tie), tie.shape)[0]).item() == 0


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.full((2, 1, 1), np.nan), "NaN or infinite"),
        (np.full((2, 1, 1), np.inf, np.float32), "NaN or infinite"),
        (np.zeros((2, 1)), r"expected floating logits \(K, H, W\)"),
        (np.zeros((2, 1, 1), np.uint8), "soft label is uint8"),
    ],
)
@pytest.mark.parametrize("name", ["fp16", "logprob8"])
def test_what_is_no_logits_is_not_encoded(name, logits, message):
    with pytest.raises(ValueError, match=message):
        get_codec(name, 2.0).encode(logits)


ONE_HOT = (np.arange(3)[:, None, None] == np.arange(40).reshape(4, 10) % 3).astype(np.float32)
CLASSES = ClassTable(OSD_CLASSES.names[:3], OSD_CLASSES.colours[:3])
KNOWN = np.arange(40).reshape(4, 10) > 4  # the other pixels are unknown


@pytest.mark.parametrize("shares", [
    ONE_HOT, ONE_HOT * KNOWN, 0.8 * ONE_HOT + 0.05, 100 * ONE_HOT, 255 * ONE_HOT * KNOWN,
    np.rint(255 * (0.7 * ONE_HOT + 0.1)), (0.7 * ONE_HOT + 0.1).astype(np.float16),
], ids=["one-hot", "unknown pixels", "sigmoid", "percent", "255ths", "rounded", "half precision"])  # fmt: skip
def test_probabilities_are_no_soft_label(shares, tmp_path):
    with pytest.raises(ValueError, match=r"a: soft label holds values from .*, as probabilities have; expected logits"):
        write_shards(tmp_path, [Sample("a", np.zeros((4, 10), np.uint8), soft_label=shares)], CLASSES)


@pytest.mark.parametrize("logits", [
    0 * ONE_HOT, 9 * ONE_HOT, 9 * ONE_HOT + np.arange(10), np.log(np.maximum(ONE_HOT, 1e-7)), ONE_HOT - 0.5,
], ids=["zeros", "9 or 0", "of any sum", "log-probabilities", "small"])  # fmt: skip
def test_logits_are_not_taken_for_probabilities(logits, tmp_path):
    write_shards(tmp_path, [Sample("a", np.zeros((4, 10), np.uint8), soft_label=logits)], CLASSES)
    assert np.array_equal(ShardSet(tmp_path)[0].soft_label, to_half(logits))


def test_codec_without_its_temperature_and_temperatures_that_are_none_are_refused():
    with pytest.raises(ValueError, match="no temperature"):
        get_codec("logprob8").encode(np.zeros((2, 1, 1)))
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected a positive number"):
            get_codec("logprob8", temperature)
    with pytest.raises(ValueError, match="there are: fp16, logprob8"):
        get_codec("zip")


def test_every_flipped_byte_and_every_truncation_of_codes_is_reported():
    logits = piecewise_logits(3, seed=0, size=16)
    codec = LogProb8Codec(2.0)
    data = codec.encode(logits)
    codes, soft_range = codec.decode(data, logits.shape)
    for place in range(len(data)):
        for bit in (1, 128):
            flipped = bytearray(data)
            flipped[place] ^= bit
            try:
                # A bit of the frame's header that says nothing of its content leaves the codes whole.
                found = codec.decode(bytes(flipped), logits.shape)
                assert np.array_equal(found[0], codes) and found[1] == soft_range
            except ValueError as error:
                assert "soft label" in str(error)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="soft label"):
            codec.decode(data[:length], logits.shape)
    with pytest.raises(ValueError, match="not a whole zstd frame"):
        codec.decode(data + b"x", logits.shape)


@pytest.mark.parametrize("claimed", [0, 19, 1 << 30, 1 << 50])
def test_frames_that_claim_another_size_are_refused_before_anything_is_allocated(claimed):
    # The magic number, a descriptor (size in 8 bytes, one segment), the size, and an empty last block.
    frame = zstandard.FRAME_HEADER + b"\xe0" + claimed.to_bytes(8, "little") + b"\x01\0\0"
    with pytest.raises(ValueError, match=f"claims {claimed} bytes; expected 20"):
        LogProb8Codec(2.0).decode(frame, (3, 2, 2))


def test_frame_that_does_not_say_its_size_is_refused():
    stream = zstandard.ZstdCompressor().compressobj()
    frame = stream.compress(bytes(20)) + stream.flush()
    with pytest.raises(ValueError, match="expected 20 for codes"):
        LogProb8Codec(2.0).decode(frame, (3, 2, 2))


@pytest.mark.parametrize("soft_range", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_ranges_in_the_bytes_are_refused(soft_range):
    data = zstandard.ZstdCompressor().compress(np.float64(soft_range).tobytes() + bytes(2))
    with pytest.raises(ValueError, match="expected a positive number of nats"):
        LogProb8Codec().decode(data, (2, 1, 1))


def test_logits_are_stored_and_read_without_zstandard():
    program = """
        import sys
        sys.modules["zstandard"] = None
        import numpy as np
        from dakd.data.soft_labels import get_codec
        logits = np.zeros((2, 1, 1))
        assert get_codec("fp16").decode(get_codec("fp16").encode(logits), (2, 1, 1))[0].dtype == np.float16
        try:
            get_codec("logprob8", 2.0).encode(logits)
        except RuntimeError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "pip install zstandard" in done.stdout


def test_fp16_codec_keeps_logits_to_half_precision_and_clips():
    logits = np.random.default_rng(0).normal(0, 30, (5, 8, 8)).astype(np.float32)
    codec = get_codec("fp16")
    back, soft_range = codec.decode(codec.encode(logits), logits.shape)
    assert back.dtype == np.float16 and soft_range is None and len(codec.encode(logits)) == 2 * logits.size
    assert (np.abs(back - logits) <= np.abs(logits) * 2.0**-11 + 2.0**-25).all()
    assert codec.decode(codec.encode(np.full((1, 1, 1), 1e9)), (1, 1, 1))[0].item() == 65504
    with pytest.raises(ValueError, match="diverged"):
        codec.encode(np.full((1, 1, 1), np.nan))
    with pytest.raises(ValueError, match="expected 8"):
        codec.decode(b"123", (1, 2, 2))
    with pytest.raises(ValueError, match="there are: fp16"):
        get_codec("zip")


# --- shards, batches, the student -------------------------------------------------------------------------------------


def make_pairs(count: int = 8) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(f"pair-{i}", rng.integers(0, 256, (16, 16), dtype=np.uint8), soft_label=piecewise_logits(5, i, 16))
        for i in range(count)
    ]


def make_set(folder, codec: str, temperature: float | None = None) -> ShardSet:
    for shard in range(2):
        write_shard(folder, shard, make_pairs()[4 * shard : 4 * shard + 4], OSD_CLASSES, codec, None, temperature)
    write_index(folder, OSD_CLASSES, kind="synthetic", codec=codec)
    return ShardSet(folder)


def student(shards: ShardSet, **options) -> StudentDataset:
    return StudentDataset(None, shards, (16, 16), **{"mosaic": True, "flip": True, "seed": 1, **options})


@pytest.fixture(scope="module")
def coded(tmp_path_factory) -> ShardSet:
    return make_set(tmp_path_factory.mktemp("coded"), "logprob8", 2.0)


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> ShardSet:
    return make_set(tmp_path_factory.mktemp("exact"), "fp16")


def test_range_stands_in_the_index_in_the_sidecars_and_in_the_tar_alone(coded, exact):
    assert coded.index.codec == "logprob8" and coded.index.soft_range == range_for(2.0, 5)
    assert exact.index.soft_range is None
    sample = coded.read(3)
    assert sample.soft_label.dtype == np.uint8 and sample.soft_range == range_for(2.0, 5)
    assert sample.soft_label.flags.writeable
    assert describe_shard(coded.folder / "shard-000000.tar", OSD_CLASSES).soft_range == range_for(2.0, 5)


def test_set_with_several_ranges_or_codecs_is_refused(tmp_path):
    pairs = make_pairs()
    write_shard(tmp_path, 0, pairs[:2], OSD_CLASSES, "logprob8", None, 2.0)
    write_shard(tmp_path, 1, pairs[2:4], OSD_CLASSES, "logprob8", None, 4.0)
    with pytest.raises(ValueError, match=r"codes of 18\.4 nats, codes of 36\.8 nats; write them all with one codec"):
        write_index(tmp_path, OSD_CLASSES, kind="synthetic", codec="logprob8")
    write_shard(tmp_path, 1, pairs[2:4], OSD_CLASSES, "fp16")
    with pytest.raises(ValueError, match="fp16, codes of"):
        write_index(tmp_path, OSD_CLASSES, kind="synthetic", codec="logprob8")


def test_the_same_codes_of_another_range_are_another_set(tmp_path):
    flat = [Sample("a", np.zeros((2, 2), np.uint8), soft_label=np.zeros((5, 2, 2), np.float32))]
    hashes = {
        write_shard(tmp_path, i, flat, OSD_CLASSES, "logprob8", None, temperature).records[0].sha256
        for i, temperature in enumerate(TEMPERATURES)
    }
    assert len(hashes) == 3


def test_batches_carry_codes_as_they_are_stored_and_one_range(coded):
    by_key = {coded.key(i): coded.read(i).soft_label for i in range(len(coded))}
    dataset = student(coded, flip=False, mosaic=False)
    batch = dataset.batch(list(range(4)))
    assert batch.teacher.dtype == torch.uint8 and batch.teacher_range == range_for(2.0, 5)
    for key, codes in zip(batch.keys, batch.teacher):
        assert np.array_equal(codes.numpy(), by_key[key])
    mosaic = student(coded, flip=False, mosaic=True).batch([0])
    assert mosaic.teacher.dtype == torch.uint8 and mosaic.teacher_range == range_for(2.0, 5)


def test_batch_that_mixes_ranges_or_codecs_is_refused(coded, exact, tmp_path):
    sets = [coded, exact, make_set(tmp_path / "other", "logprob8", 4.0)]
    for number, (one, two) in enumerate(itertools.permutations(sets, 2)):
        mixed = tmp_path / f"mixed{number}"
        mixed.mkdir()
        entries = []
        for shard, source in enumerate((one, two)):
            entries.append(source.index.shards[0].model_copy(update={"file": f"shard-{shard:06d}.tar"}))
            for suffix in ("tar", "json"):
                shutil.copy(source.folder / f"shard-000000.{suffix}", mixed / f"shard-{shard:06d}.{suffix}")
        count = sum(entry.num_samples for entry in entries)
        index = one.index.model_copy(update={"shards": entries, "num_samples": count, "num_soft": count})
        save_index(mixed, index)
        with pytest.raises(ValueError, match="a batch mixes soft labels of different kinds"):
            student(ShardSet(mixed), mosaic=False).batch(list(range(count)))


def test_hard_labels_from_codes_are_their_smallest(coded):
    hard, soft = (student(coded, mosaic=False, hard_labels=wanted).batch([1]) for wanted in (True, False))
    assert hard.teacher is None and np.array_equal(hard.label, soft.teacher.numpy().argmin(axis=1))


class TwoConvolutions(BareStudent):
    def __init__(self, num_classes, multiple):
        super().__init__(num_classes, multiple)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 3, padding=1))

    def segment(self, image):
        return self.layers(image)


def test_student_trained_from_codes_has_the_losses_of_logits_within_the_stated_error(coded, exact):
    """At equal weights each step's loss is within the bound; and so trained, the students stay together."""
    cfg = StudentLossConfig(temperature=2.0)
    sources = [make_loader(student(shards), 2, 0, 1, 0) for shards in (coded, exact)]
    torch.manual_seed(0)
    modules = []
    for _ in sources:
        net = TwoConvolutions(num_classes=5, multiple=1)
        if modules:
            net.load_state_dict(modules[0].net.state_dict())
        modules.append(StudentLoss(net, cfg, 0, torch.contiguous_format))
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.05) for module in modules]
    largest = max(float(np.abs(pair.soft_label).max()) for pair in make_pairs())
    of_targets = target_error(range_for(2.0, 5), 2.0, 5) + fp16_target_error(largest, 2.0)
    for batches in itertools.islice(zip(*sources), 8):
        assert batches[0].keys == batches[1].keys
        spreads = []
        hook = modules[0].net.register_forward_hook(
            lambda net, inputs, logits, kept=spreads: kept.append((logits.amax(1) - logits.amin(1)).max().item())
        )
        with torch.no_grad():
            from_codes, from_logits = (modules[0](batch)["kd"] for batch in batches)
        hook.remove()
        assert (from_codes - from_logits).abs().max() <= kd_error(of_targets, 2.0, spreads[0]) + ROUNDING
        for module, optimizer, batch in zip(modules, optimizers, batches):
            optimizer.zero_grad()
            module(batch)["loss"].mean().backward()
            optimizer.step()
    with torch.no_grad():
        losses = [float(module(batches[1])["loss"].mean()) for module in modules]
    assert losses[0] == pytest.approx(losses[1], rel=0.01) and losses[0] != losses[1]


def test_training_at_another_temperature_is_refused_with_the_error_that_it_would_have():
    check_temperature(range_for(2.0, 5), [2.0], 5)
    check_temperature(None, [0.5, 8.0], 5)
    for temperature in (1.0, 4.0):
        with pytest.raises(ValueError, match=r"for the temperature 2; softened by \d they may be off by 0\.0\d\d"):
            check_temperature(range_for(2.0, 5), [2.0, temperature], 5)
