"""Samples of each setting from the same start noise; those that all others are compared with are kept in a file."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dakd.config import GenerateConfig, validated
from dakd.convergence.distances import Pairs
from dakd.convergence.record import REFERENCE_FILE, Record
from dakd.convergence.settings import Setting, fine_of, reference_of
from dakd.generate.teacher import PairMaker, Teacher
from dakd.runtime.runlog import progress, say
from dakd.runtime.tensor_files import load_state, read_metadata, save_weights


class Start(NamedTuple):
    """The start noise: number, size (height, width) in pixels and seed of the pairs; micro_batch: sampled together."""

    num: int
    size: tuple[int, int]
    seed: int
    micro_batch: int


def sample_pairs(teacher: Teacher, setting: Setting, start: Start) -> Pairs:
    """The pairs 0 .. num - 1 of a setting, in the precision that the teacher samples in."""
    given = {**setting._asdict(), "num_samples": start.num, **start._asdict()}
    del given["num"]
    maker = PairMaker(teacher, validated(GenerateConfig, given, "settings of the pairs"), 1.0)
    firsts = range(0, start.num, start.micro_batch)
    batches = (maker.sample(range(first, min(start.num, first + start.micro_batch))) for first in firsts)
    made = [(image.cpu(), logits.float().cpu()) for image, logits in progress(batches, len(firsts), str(setting))]
    image, logits = (torch.cat(list(parts)).numpy() for parts in zip(*made))
    return Pairs(image[:, 0], logits)


def reference_pairs(record: Record, teacher: Teacher, start: Start) -> tuple[Pairs, Pairs]:
    """The pairs of the reference and of the fine solution: those beside the record, or sampled and kept there."""
    path, made_with = record.path.with_name(REFERENCE_FILE), record.made_with
    if path.is_file() and read_metadata(path) == made_with:
        kept = {name: tensor.numpy() for name, tensor in load_state(path).items()}
        return Pairs(kept["image"], kept["logits"]), Pairs(kept["fine_image"], kept["fine_logits"])
    settings = [make(made_with["reference_steps"]) for make in (reference_of, fine_of)]
    for setting in settings:
        say(f"convergence: sampling {start.num} pairs with {setting}")
    reference, fine = (sample_pairs(teacher, setting, start) for setting in settings)
    tensors = {"image": reference.image, "logits": reference.logits}
    tensors |= {"fine_image": fine.image, "fine_logits": fine.logits}
    save_weights(path, {name: torch.from_numpy(one) for name, one in tensors.items()}, dict(made_with))
    return reference, fine
