"""The part of the real training samples that is held out of the students' training, for choosing and calibrating them.

It is a function of the seed and of the samples' keys and classes: the same for every training set, number of ranks and
packing into shards, and a larger share holds out the samples of a smaller one and others. It is stratified by the set
of classes that a label holds: of each such set about the same share is held out.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from dakd.data.index import RecordInfo
from dakd.data.shards import ShardSet
from dakd.runtime.seeding import key_number


def num_held_out(num_samples: int, share: float) -> int:
    """The whole number nearest to the share of so many samples, at least 1; 0 for no share.

    ValueError where no sample would be left to train on.
    """
    if not share:
        return 0
    count = max(1, math.floor(share * num_samples + 0.5))
    if count >= num_samples:
        raise ValueError(
            f"validation.share {share:g} of {num_samples} real training samples holds out {count}, and none is left to "
            "train on; expected at least one: lower the share, or prepare more images"
        )
    return count


def held_out_places(real: ShardSet, share: float, seed: int) -> list[int]:
    """The ascending places in the real set of the samples that are held out; [] for no share.

    Raises ValueError where the set has samples without labels, and where it is too small: no sample would be left to
    train on, a class would have none, or those held out have no pixel with a class.
    """
    if not share:
        return []
    if real.index.num_labelled != len(real):
        raise ValueError(
            f"{real.folder}: {real.index.num_labelled} of {len(real)} samples have labels; validation.share needs all: "
            "add the others' masks and prepare again, or set the share to 0"
        )
    wanted, infos = num_held_out(len(real), share), list(real.record_infos())
    classes_of = [_classes(info) for info in infos]
    left = Counter(one for classes in classes_of for one in classes)
    chosen: list[int] = []
    for place in _in_turns(infos, classes_of, seed):
        if len(chosen) < wanted and all(left[one] > 1 for one in classes_of[place]):
            chosen.append(place)
            left.subtract(classes_of[place])
    _refuse_too_small(real, share, wanted, chosen, classes_of)
    return sorted(chosen)


def _classes(info: RecordInfo) -> tuple[int, ...]:
    """The ids of the classes that a label holds, ascending."""
    return tuple(number for number, pixels in enumerate(info.class_pixels) if pixels)


def _in_turns(infos: Sequence[RecordInfo], classes_of: Sequence[tuple[int, ...]], seed: int) -> Iterator[int]:
    """All places, in an order of which every beginning has the sets of classes in about the shares that all have.

    Number r of the n samples with one set of classes comes at (r + 1/2) / n: the places are shared out as seats are by
    Sainte-Lague. Among themselves, and at a tie, samples are in random order.
    """
    draw = [key_number(seed, info.key) for info in infos]
    strata: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for place in sorted(range(len(infos)), key=lambda place: (draw[place], infos[place].key)):
        strata[classes_of[place]].append(place)
    turns = [
        ((2 * number + 1) / (2 * len(places)), draw[place], infos[place].key, place)
        for places in strata.values()
        for number, place in enumerate(places)
    ]
    return (turn[-1] for turn in sorted(turns))


def _refuse_too_small(
    real: ShardSet, share: float, wanted: int, chosen: Sequence[int], classes_of: Sequence[tuple[int, ...]]
) -> None:
    if len(chosen) < wanted:
        only = Counter(one for place, classes in enumerate(classes_of) if place not in chosen for one in classes)
        rare = ", ".join(real.classes.names[one] for one in sorted(only) if only[one] == 1)
        raise ValueError(
            f"{real.folder}: validation.share {share:g} of {len(real)} samples holds out {wanted}, but beyond "
            f"{len(chosen)} of them the training has no sample left with {rare}; lower the share, or prepare more "
            "images of these classes"
        )
    if not any(classes_of[place] for place in chosen):
        raise ValueError(
            f"{real.folder}: the {len(chosen)} samples that validation.share {share:g} holds out have no pixel with a "
            "class; expected some: raise the share, or label more images"
        )
