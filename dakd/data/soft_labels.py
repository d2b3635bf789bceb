"""The codec of soft labels: raw logits (K, H, W) to the bytes of a shard member and back, with a stated error."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Codec(Protocol):
    """How soft labels are stored; `name` is the end of the member's extension, as in `soft.fp16`."""

    name: str

    def encode(self, logits: np.ndarray) -> bytes:
        """(K, H, W) floating logits to bytes; ValueError for logits that are not finite."""

    def decode(self, data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        """The bytes of `encode` to float16 logits of `shape`; ValueError when the length does not fit."""


class Fp16Codec:
    """Raw little-endian float16, C order. |error| <= 2^-11 |logit| (or 2^-25 near 0); beyond +-65504 it is clipped."""

    name = "fp16"

    def encode(self, logits: np.ndarray) -> bytes:
        logits = np.asarray(logits)
        if logits.ndim != 3:
            raise ValueError(f"soft label has shape {logits.shape}; wanted (K, H, W)")
        if not np.isfinite(logits).all():
            raise ValueError("soft label holds NaN or infinite logits; the net that made it has diverged")
        limit = np.finfo(np.float16).max
        return np.clip(logits, -limit, limit).astype("<f2").tobytes()

    def decode(self, data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        expected = 2 * int(np.prod(shape))
        if len(data) != expected:
            raise ValueError(f"soft label has {len(data)} bytes; wanted {expected} for float16 of shape {shape}")
        return np.frombuffer(data, "<f2").reshape(shape).astype(np.float16, copy=False)


_CODECS: dict[str, Codec] = {"fp16": Fp16Codec()}


def get_codec(name: str) -> Codec:
    """The codec called `name`; ValueError lists those there are."""
    if name not in _CODECS:
        raise ValueError(f"no soft-label codec is called {name!r}; there are: {', '.join(_CODECS)}")
    return _CODECS[name]
