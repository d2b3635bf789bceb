"""Records that others wrote with webdataset: which of their members are understood, and how.

    image   png, jpg, jpeg, image.png, sar.png   one grey channel of 8 bits;  sar.npy  (H, W) uint8
    label   label.png, mask.png, seg.png         ids as grey values;  label.npy  (H, W) uint8
    logits  soft.npy                             (K, H, W) floating; no probabilities
    json    facts, kept as the sample's meta

Labels hold ids and nothing else, for a record alone cannot tell what colours, a palette's or black and white mean.

Members are decoded explicitly, by their extension; nothing else is opened, and no pickle ever.
"""

from __future__ import annotations

import ast
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.mask_pixels import read_mask
from dakd.data.readers.read_picture import read_grey
from dakd.data.sample import IGNORE_INDEX, Sample
from dakd.data.soft_labels import refuse_probabilities, to_half

IMAGE_MEMBERS = ("png", "jpg", "jpeg", "image.png", "sar.png", "sar.npy")
LABEL_MEMBERS = ("label.png", "mask.png", "seg.png", "label.npy")
SOFT_MEMBERS = ("soft.npy",)
_KNOWN = (*IMAGE_MEMBERS, *LABEL_MEMBERS, *SOFT_MEMBERS, "json")
_MAX_HEADER_BYTES = 4096


def is_label(extension: str) -> bool:
    """Whether a member of that extension is a label, dakd's own or another's."""
    return extension == "label.u8" or extension in LABEL_MEMBERS


def is_soft_label(extension: str) -> bool:
    """Whether a member of that extension is a soft label, dakd's own or another's."""
    return extension.startswith("soft.")


def decode_foreign(key: str, members: Mapping[str, bytes | memoryview]) -> Sample:
    """The sample of a record of this kind. Raises ValueError naming the members that are unknown or do not fit."""
    unknown = [name for name in members if name not in _KNOWN]
    if unknown:
        known = ", ".join(_KNOWN)
        raise ValueError(f"record {key!r} has members that are not known: {', '.join(unknown)}; known: {known}")
    images = [name for name in IMAGE_MEMBERS if name in members]
    labels = [name for name in LABEL_MEMBERS if name in members]
    if len(images) != 1 or len(labels) > 1:
        found = ", ".join(members)
        raise ValueError(f"record {key!r} has the members {found}; expected one image ({', '.join(IMAGE_MEMBERS)}) "
                         f"and at most one label ({', '.join(LABEL_MEMBERS)})")  # fmt: skip
    sar = _decode_image(images[0], members[images[0]])
    label = _decode_label(labels[0], members[labels[0]]) if labels else None
    if label is not None and label.shape != sar.shape:
        raise ValueError(f"record {key!r}: label is {label.shape}, its image {sar.shape}; make them equal")
    soft = read_npy(members["soft.npy"], "soft.npy") if "soft.npy" in members else None
    if soft is not None:
        if soft.ndim != 3 or soft.dtype.kind != "f" or soft.shape[1:] != sar.shape or not np.isfinite(soft).all():
            found = f"{soft.dtype} {soft.shape}"
            raise ValueError(f"record {key!r}: soft.npy is {found}; expected finite floats (K, *{sar.shape})")
        refuse_probabilities(f"record {key!r}: soft.npy", soft)
        soft = to_half(soft)
    return Sample(key=key, sar=sar, label=label, soft_label=soft, meta=_decode_meta(members.get("json")))


def read_npy(data: bytes | memoryview, name: str) -> np.ndarray:
    """The array of a .npy of numbers; ValueError for objects, and for a header that claims another size than there is.

    numpy's own reader would take memory for any size that the header claims.
    """
    data = memoryview(data)
    if bytes(data[:6]) != b"\x93NUMPY" or len(data) < 12:
        raise ValueError(f"{name} is not a .npy file; write it with numpy.save")
    size, start = struct.unpack_from("<H", data, 8)[0], 10
    if data[6] > 1:
        size, start = struct.unpack_from("<I", data, 8)[0], 12
    if size > _MAX_HEADER_BYTES:
        raise ValueError(f"{name} has a header of {size} bytes; expected at most {_MAX_HEADER_BYTES}")
    try:
        header = ast.literal_eval(bytes(data[start : start + size]).decode("latin1"))
        shape, dtype, order = header["shape"], np.dtype(header["descr"]), header["fortran_order"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name} has a damaged header ({error!r:.200}); write it with numpy.save") from None
    is_plain = isinstance(shape, tuple) and all(type(side) is int and side > 0 for side in shape)
    if not is_plain or dtype.kind not in "uif" or order is not False:
        raise ValueError(f"{name} holds {header!r:.200}; expected numbers, rows first")
    if math.prod(shape) * dtype.itemsize != len(data) - start - size:
        raise ValueError(f"{name} claims {shape} of {dtype}, but has {len(data) - start - size} bytes; write it again")
    return np.frombuffer(data[start + size :], dtype).reshape(shape)


def _decode_image(name: str, data: bytes | memoryview) -> np.ndarray:
    if name.endswith(".npy"):
        return _grey(read_npy(data, name), name)
    try:
        return read_grey(Path(name), bytes(data))
    except BadFile as error:
        raise ValueError(f"{name} {error.reason}") from None


def _decode_label(name: str, data: bytes | memoryview) -> np.ndarray:
    if name.endswith(".npy"):
        return _grey(read_npy(data, name), name)
    try:
        pixels = read_mask(Path(name), bytes(data))
    except BadFile as error:
        raise ValueError(f"{name} {error.reason}") from None
    values, remedy = pixels.values, "write them as 8-bit grey values, or take the masks as files, with dakd prepare"
    if not pixels.form.endswith("grey"):
        form = {"bits": "1-bit picture", "palette": "palette"}.get(pixels.form, "colour picture")
        raise ValueError(f"{name} is a {form}; expected class ids, which this does not say for certain: {remedy}")
    if pixels.is_lossy:
        raise ValueError(f"{name} is a JPEG, whose compression changes ids, or a TIFF compressed like one; {remedy}")
    if values.min() < 0 or values.max() > IGNORE_INDEX:
        raise ValueError(f"{name} holds values from {values.min()} to {values.max()}; expected class ids: {remedy}")
    return values.astype(np.uint8)


def _grey(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 2:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; expected uint8 (H, W)")
    return array


def _decode_meta(data: bytes | memoryview | None) -> dict:
    if data is None:
        return {}
    try:
        meta = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"json cannot be read ({error}); write the record again") from None
    return meta if isinstance(meta, dict) else {"json": meta}
