"""The codecs of soft labels: raw logits z (K, H, W) to the bytes of a shard member and back, with a stated error.

    fp16       the logits themselves, in half precision: any temperature, 2 K bytes a pixel
    logprob8   codes round(255 (max_k z_k - z) / R), clipped at 255, as one zstd frame: about a quarter of the bytes

A softmax depends only on differences of logits, so the gap to the largest one, the log-probability's without its
normalisation, is all that a student needs. The range R in nats goes with the temperature T that the student softens
by: a wide range costs resolution (a step is R / 255), a narrow one cuts off what e^(-R / T) still counts, in each of
the other classes: so the range grows with their number. Codes are read as they are: the student's loss takes them with
R (`kernels/seg_loss`), and so does `likeliest_class`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from types import ModuleType
from typing import Protocol

import numpy as np

# R / T of codes. Up to ten classes, what the steps cost (0.0090) and what the clipping does stay below 0.01 together.
# More classes take the range of the least error (see `range_for`): 0.0101 for 12, 0.0107 for 20, 0.0132 for 255.
RANGE_PER_TEMPERATURE = 9.2
MAX_TARGET_ERROR = 0.01

_MAX_CODE = 255
# Entropy coding does the work, matches are few: higher levels take up to twice as long for 5 % of the bytes.
_ZSTD_LEVEL = 1
_HEADER = struct.Struct("<d")
# Sums of the probabilities of a pixel, what they may be off by (half precision, rounding), and in how many pixels.
_TOTALS = (1, 100, 255)
_MAX_SUM_ERROR = 0.02
_MIN_SHARE = 0.95


class Codec(Protocol):
    """How soft labels are stored; `name` is the end of the member's extension, as in `soft.fp16`."""

    name: str

    def encode(self, logits: np.ndarray) -> bytes:
        """(K, H, W) floating logits to bytes; ValueError for logits that are not finite."""

    def pack(self, codes: np.ndarray, soft_range: float) -> bytes:
        """(K, H, W) uint8 codes and their range, as `decode` gives them, to the same bytes.

        Raises ValueError for a codec without codes, and for codes of another range than its own.
        """

    def decode(self, data: bytes, shape: tuple[int, int, int]) -> tuple[np.ndarray, float | None]:
        """What `encode` stored, (K, H, W): float16 logits and None, or uint8 codes and the nats of code 255.

        Raises ValueError for bytes that `encode` did not make.
        """


class Fp16Codec:
    """Raw little-endian float16, C order. |error| <= 2^-11 |logit| (or 2^-25 near 0); beyond +-65504 it is clipped."""

    name = "fp16"

    def encode(self, logits: np.ndarray) -> bytes:
        return to_half(_check_logits(logits)).astype("<f2", copy=False).tobytes()

    def pack(self, codes: np.ndarray, soft_range: float) -> bytes:
        raise ValueError(
            f"soft label is codes of {soft_range:g} nats; expected logits for codec fp16: write codes with codec "
            "logprob8 and the temperature that they were made for"
        )

    def decode(self, data: bytes, shape: tuple[int, int, int]) -> tuple[np.ndarray, None]:
        expected = 2 * math.prod(shape)
        if len(data) != expected:
            raise ValueError(f"soft label has {len(data)} bytes; expected {expected} for float16 of shape {shape}")
        return np.frombuffer(data, "<f2").reshape(shape).astype(np.float16, copy=False), None


class LogProb8Codec:
    """One zstd frame with size and checksum: the range R, a little-endian float64, then K H W codes in C order.

    |(max - z) - R code / 255| <= R / 510 up to R; a larger gap counts as R. The largest logit is exact: code 0. So is
    every class within R / 510 of it, and of those the first is the hard label.

    temperature: of the student's softmax; needed to encode, not to decode.
    """

    name = "logprob8"

    def __init__(self, temperature: float | None = None) -> None:
        if temperature is not None:
            check_is_temperature(temperature)
        self.temperature = temperature

    def encode(self, logits: np.ndarray) -> bytes:
        if self.temperature is None:
            raise ValueError("codec logprob8 has no temperature; give the one that the student will soften by")
        logits = _check_logits(logits)
        soft_range = range_for(self.temperature, len(logits))
        # In single precision at least; a gap that overflows even that is infinite, and clipped as it should be.
        with np.errstate(over="ignore"):
            gap = np.subtract(logits.max(axis=0), logits, dtype=np.promote_types(logits.dtype, np.float32))
            gap *= _MAX_CODE / soft_range
        np.rint(np.minimum(gap, _MAX_CODE, out=gap), out=gap)
        return _compressed(gap.astype(np.uint8), soft_range)

    def pack(self, codes: np.ndarray, soft_range: float) -> bytes:
        if codes.dtype != np.uint8 or codes.ndim != 3:
            raise ValueError(f"soft label is {codes.dtype} of shape {codes.shape}; expected uint8 codes (K, H, W)")
        wanted = soft_range if self.temperature is None else range_for(self.temperature, len(codes))
        if not math.isclose(soft_range, wanted):
            raise ValueError(
                f"soft label is codes of {soft_range:g} nats; expected {wanted:g}, which the temperature "
                f"{self.temperature:g} takes: give {soft_range / range_for(1.0, len(codes)):.6g}, that of the codes"
            )
        return _compressed(codes, soft_range)

    def decode(self, data: bytes, shape: tuple[int, int, int]) -> tuple[np.ndarray, float]:
        zstandard, expected = _zstandard(), _HEADER.size + math.prod(shape)
        try:
            # Asked first: the library would allocate any size that a damaged frame claims.
            found = zstandard.get_frame_parameters(data).content_size
            if found != expected:
                raise ValueError(f"soft label claims {found} bytes; expected {expected} for codes of shape {shape}")
            content = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(f"soft label is not a whole zstd frame of codes ({error}); write it again") from None
        (soft_range,) = _HEADER.unpack_from(content)
        if not (math.isfinite(soft_range) and soft_range > 0):
            raise ValueError(f"soft label has the range {soft_range}; expected a positive number of nats")
        return np.frombuffer(content, np.uint8, offset=_HEADER.size).reshape(shape).copy(), soft_range


CODECS = ("fp16", "logprob8")


def get_codec(name: str, temperature: float | None = None) -> Codec:
    """The codec called `name`; ValueError lists those there are.

    temperature: of the student's softmax; `logprob8` needs it to encode, `fp16` serves any.
    """
    if name not in CODECS:
        raise ValueError(f"no soft-label codec is called {name!r}; there are: {', '.join(CODECS)}")
    return Fp16Codec() if name == "fp16" else LogProb8Codec(temperature)


def to_half(logits: np.ndarray) -> np.ndarray:
    """Finite logits as float16, beyond +-65504 clipped: an infinite one would make the student's softmax NaN."""
    limit = np.finfo(np.float16).max
    return np.clip(logits, -limit, limit).astype(np.float16)


def refuse_probabilities(what: str, soft: np.ndarray) -> None:
    """ValueError for (K, H, W) that are probabilities, percent or 255ths of them; what: names them in the message.

    A student would take them as logits: a softmax of a softmax, which is nearly flat. Logits are never all within 0 and
    1, unless all are 0, nor are they positive with one sum in nearly all pixels. Pixels of zeros may be unknown ones.
    """
    soft = np.asarray(soft)
    if soft.size == 0 or not soft.min() >= 0 or not soft.any():
        return
    found = f"{what} holds values from {soft.min():g} to {soft.max():g}"
    remedy = "expected logits: store these, or log-probabilities, numpy.log(numpy.maximum(p, 1e-7))"
    if soft.max() <= 1:
        raise ValueError(f"{found}, as probabilities have; {remedy}")
    sums = soft.sum(axis=0, dtype=np.float64)
    for total in _TOTALS:
        is_total = np.abs(sums - total) <= _MAX_SUM_ERROR * total
        if is_total.sum() > _MIN_SHARE * np.count_nonzero(sums):
            raise ValueError(f"{found} with the sum {total} in nearly all pixels, as probabilities have; {remedy}")


def likeliest_class(soft_label: np.ndarray) -> np.ndarray:
    """(H, W) uint8: the class with the largest logit, or with the smallest code; the first where several are."""
    best = soft_label.argmin(axis=0) if soft_label.dtype == np.uint8 else soft_label.argmax(axis=0)
    return best.astype(np.uint8)


def common_range(ranges: Iterable[float | None], where: str) -> float | None:
    """The one range of several soft labels, None where they are logits; ValueError where they differ."""
    # None does not compare with numbers; -1 stands for it, since every range is positive.
    found = sorted({-1.0 if soft_range is None else soft_range for soft_range in ranges})
    if len(found) > 1:
        kinds = ", ".join("fp16" if soft_range < 0 else f"codes of {soft_range:g} nats" for soft_range in found)
        raise ValueError(
            f"{where} mixes soft labels of different kinds: {kinds}; write them all with one codec and temperature"
        )
    return found[0] if found and found[0] > 0 else None


# --- the stated error -------------------------------------------------------------------------------------------------


def range_for(temperature: float, num_classes: int) -> float:
    """R in nats for a temperature; ValueError unless that is a positive number.

    Beyond ten classes R / T is ln(1020 (K - 1)): where the error that the steps add, 1 / 1020 for each nat, is what the
    clipping of K - 1 classes, (K - 1) e^(-R / T), loses, so that their sum is least.
    """
    check_is_temperature(temperature)
    return max(RANGE_PER_TEMPERATURE, math.log(4 * _MAX_CODE * max(1, num_classes - 1))) * temperature


def check_is_temperature(temperature: float) -> None:
    """ValueError unless it is a positive number."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; expected a positive number")


def max_target_error(num_classes: int) -> float:
    """What codes may cost a softened target: 0.01, and beyond ten classes 0.1 % more than the least there is."""
    return max(MAX_TARGET_ERROR, 1.001 * target_error(range_for(1.0, num_classes), 1.0, num_classes))


def target_error(soft_range: float, temperature: float, num_classes: int) -> float:
    """How far softmax(z / T) from codes is from the logits' own at most: for every class, and in total variation.

    Steps: gaps are off by R / 510, so that log-odds of any classes against the rest move by at most 2 R / (510 T), and
    a probability by tanh(R / (1020 T)). Clipping: each of the K - 1 others takes e^(-R / T) at most of the largest
    one's weight where it had less.
    """
    clipped = (num_classes - 1) * math.exp(-soft_range / temperature)
    return math.tanh(soft_range / (4 * _MAX_CODE * temperature)) + clipped / (1 + clipped)


def fp16_target_error(largest_logit: float, temperature: float) -> float:
    """The same for half precision: logits of at most 65504 in absolute value, each off by its 2048th part."""
    return math.tanh(max(largest_logit, 2**-14) / (4096 * temperature))


def kd_error(error_of_target: float, temperature: float, largest_spread: float) -> float:
    """How far the distillation loss, -sum_c softmax(z / T)_c log softmax(s / T)_c, is off at most.

    largest_spread: the largest difference between the student's logits s at a pixel.
    """
    return error_of_target * largest_spread / temperature


def check_temperature(soft_range: float | None, temperatures: Iterable[float], num_classes: int) -> None:
    """ValueError if codes of a range may be off by more than `max_target_error` at a temperature; logits serve any."""
    if soft_range is None:
        return
    allowed = max_target_error(num_classes)
    for temperature in temperatures:
        error = target_error(soft_range, temperature, num_classes)
        if error > allowed:
            raise ValueError(
                f"soft labels were written for the temperature {soft_range / range_for(1.0, num_classes):.4g}; "
                f"softened by {temperature:g} they may be off by {error:.4f}, expected at most {allowed:.4f}; "
                "generate them again for this temperature or with codec fp16"
            )


def _check_logits(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits)
    if logits.ndim != 3 or not np.issubdtype(logits.dtype, np.floating):
        raise ValueError(f"soft label is {logits.dtype} of shape {logits.shape}; expected floating logits (K, H, W)")
    if not np.isfinite(logits).all():
        raise ValueError(
            "soft label holds NaN or infinite logits: the net that made it has diverged; train it again with a "
            "lower lr"
        )
    return logits


def _compressed(codes: np.ndarray, soft_range: float) -> bytes:
    content = _HEADER.pack(soft_range) + codes.tobytes()
    return _zstandard().ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compress(content)


def _zstandard() -> ModuleType:
    """Imported where codes are read or written: plain logits do not need it."""
    try:
        import zstandard
    except ImportError:
        raise RuntimeError("codec logprob8 needs zstandard, which is not installed; pip install zstandard") from None
    return zstandard
