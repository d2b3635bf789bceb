"""The held-out part of a student's training samples: scores of the averaged weights, the best of them, a temperature.

A training's folder then has `validation.jsonl`, a line for each scoring, and with `keep: best` the weights that were
the best in `best/step-*`: those that are the best now, and those that were at each checkpoint, so that a run that
resumes from any of them has the same best weights as one that never stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dakd.config import ValidationConfig
from dakd.data.ordered_records import OnBadRecord
from dakd.data.records import BadRecord
from dakd.data.sample import IGNORE_INDEX, Sample
from dakd.data.shards import ShardSet
from dakd.data.transforms import to_student
from dakd.metrics.confusion import count_pairs
from dakd.metrics.scores import one_class_note, score
from dakd.metrics.temperature import HIGHEST, LOWEST, Fit, Terms, fit_temperature, sums_over_pixels
from dakd.runtime import distributed
from dakd.runtime.files import open_to_append, sync
from dakd.runtime.runlog import drop_records_after, read_records, say
from dakd.runtime.tensor_files import load_strict
from dakd.train.checkpoint import (
    list_checkpoints,
    load_tensors,
    remove_state,
    step_of,
    verified_facts,
    write_state,
)

SCORES, BEST = "validation.jsonl", "best"  # a file and a folder of the training's folder


def best_of(scores: Sequence[Mapping]) -> Mapping | None:
    """The line with the highest mIoU, of equals the earliest; None of none."""
    return max(scores, key=lambda line: line["miou"], default=None)  # max takes the first


def ending_step(scores: Sequence[Mapping], patience: int) -> int | None:
    """The step whose line is the `patience`-th in a row without a higher mIoU than before; None without one."""
    best, stale = -math.inf, 0
    for line in scores:
        best, stale = max(best, line["miou"]), 0 if line["miou"] > best else stale + 1
        if stale >= patience:
            return line["step"]
    return None


class Validation:
    """Scores a student's weights on the held-out samples, and keeps the lines and the best weights in a folder.

    new_net: gives the student with any weights.  real: the set with the held-out samples at `places`.
    folder, label: of the training.  `begin`, `score` and `fit` are collectives; rank 0 writes.
    """

    def __init__(
        self,
        cfg: ValidationConfig,
        new_net: Callable[[], nn.Module],
        real: ShardSet,
        places: Sequence[int],
        folder: Path,
        label: str,
        on_bad_record: OnBadRecord = "stop",
    ) -> None:
        self.cfg, self.real, self.places = cfg, real, list(places)
        self.folder, self.label, self.on_bad_record = folder, label, on_bad_record
        self._new_net = new_net
        self._net: nn.Module | None = None
        self._scores: list[dict] | None = None  # None until `begin`
        self._bad: set[int] = set()

    # -- the course of the training -----------------------------------------------------------------------------------

    @property
    def scores(self) -> list[dict]:
        """The lines so far; before the training begins, those that an earlier start has left."""
        return read_records(self.folder / SCORES) if self._scores is None else self._scores

    @property
    def end_step(self) -> int | None:
        """The step at which `patience` ends the training; None where it does not, or not yet."""
        return None if self.cfg.patience is None else ending_step(self.scores, self.cfg.patience)

    def begin(self, first_step: int) -> None:
        """Go on after a step: lines and weights of later steps, which will be taken again, are dropped.

        Raises ValueError where lines or weights of the steps before are not there.
        """
        path, found, fault = self.folder / SCORES, [], None
        if distributed.is_main():
            drop_records_after(path, first_step)
            found = read_records(path)
            fault = self._fault(found, first_step)
            if fault is None:
                self._drop_others(found)
        found, fault = distributed.broadcast([found, fault])
        if fault is not None:
            raise ValueError(f"{fault}; remove {self.folder} to train again")
        self._scores = found

    def _fault(self, found: list[dict], first_step: int) -> str | None:
        steps = {line["step"] for line in found}
        absent = [step for step in range(self.cfg.every, first_step + 1, self.cfg.every) if step not in steps]
        if absent:
            return f"{self.folder / SCORES} has no scores of step {absent[0]}, though step {first_step} was reached"
        best = best_of(found)
        if self.cfg.keep == "best" and best is not None:
            try:
                verified_facts(self._weights_of(best["step"]))
            except ValueError as error:
                return f"the best weights so far cannot be read: {error}"
        return None

    def score(self, weights: Mapping[str, Tensor], step: int) -> dict:
        """Score weights after a step, and keep them where they are the best so far; the line.

        weights: the student's state dict on rank 0; of other ranks it is not read.
        """
        line = {"step": step} | self._measure(self._loaded(weights))
        # One rank's arithmetic for all: they must agree on the best and on the end.
        line = distributed.broadcast(line)
        before = best_of(self.scores)
        self._scores = [*self.scores, line]
        if distributed.is_main():
            if self.cfg.keep == "best" and (before is None or line["miou"] > before["miou"]):
                write_state(self._weights_of(step), dict(weights), {"step": step, "miou": line["miou"]})
                self._drop_others(self._scores)
            with open_to_append(self.folder / SCORES) as stream:
                stream.write(json.dumps(line) + "\n")
            # A checkpoint never outlives the lines of its steps.
            sync(self.folder / SCORES)
        return line

    def _weights_of(self, step: int) -> Path:
        return self.folder / BEST / f"step-{step:08d}"

    def _drop_others(self, scores: list[dict]) -> None:
        """Remove weights that are neither the best now nor were it at one of the checkpoints."""
        ends = [math.inf, *map(step_of, list_checkpoints(self.folder / "checkpoints"))]
        bests = [best_of([line for line in scores if line["step"] <= end]) for end in ends]
        kept = {best["step"] for best in bests if best is not None}
        for path in list_checkpoints(self.folder / BEST):
            if step_of(path) not in kept:
                remove_state(path)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _chosen(self) -> dict:
        """The line of the step whose averaged weights are the final ones."""
        return best_of(self.scores) if self.cfg.keep == "best" else self.scores[-1]

    def chosen_weights(self) -> dict[str, Tensor] | None:
        """The state dict of the best step on rank 0, empty on others; None where those of the last step are kept."""
        if self.cfg.keep != "best":
            return None
        if not distributed.is_main():
            return {}
        self._drop_others(self.scores)  # once more, now that the last checkpoint is there
        return load_tensors(self._weights_of(self._chosen()["step"]))

    def fit(self, weights: Mapping[str, Tensor], kind: str) -> Fit:
        """Fit a temperature to the logits of these `ema` or `raw` weights on the held-out samples, and say so."""
        net = self._loaded(weights)

        def of_image(logits: Tensor, label: Tensor, beta: float) -> list[float]:
            sums, num_pixels = sums_over_pixels(logits, label, beta)
            return [*sums, num_pixels]

        def means_at(beta: float) -> Terms:
            *sums, pixels = zip(*self._each(net, partial(of_image, beta=beta)))
            return Terms(*(math.fsum(column) / sum(pixels) for column in sums))

        fit = fit_temperature(means_at)
        say(
            f"{self.label}: temperature of the {kind} weights {fit.temperature:.4g}; mean cross-entropy on "
            f"{len(self.places)} held-out images {fit.loss_before:.4g} without it, {fit.loss:.4g} with it"
        )
        if fit.is_at_bound:
            say(
                f"{self.label}: that is a bound of [{LOWEST:g}, {HIGHEST:g}]: the held-out images are too few or too "
                "easy to calibrate by, or the student has hardly learnt"
            )
        return fit

    def facts(self) -> dict:
        """What the metadata of the final averaged weights say about their scoring."""
        line = self._chosen()
        scores = {"num_images": len(self.places), "step": line["step"], "miou": line["miou"], "loss": line["loss"]}
        return scores | {"ended_early_at": self.end_step}

    def note(self) -> str | None:
        """A sentence where these weights predict only one class."""
        where = f"the {len(self.places)} held-out images"
        return one_class_note(self.label, np.array(self._chosen()["counts"]), self.real.classes.names, where)

    # -- passes over the samples --------------------------------------------------------------------------------------

    def _loaded(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """The net with rank 0's weights, in eval mode, on every rank's device."""
        if self._net is None:
            self._net = self._new_net().to(distributed.device()).eval()
        if distributed.is_main():
            load_strict(self._net, weights, "the training engine")
        distributed.broadcast_tensors(self._net.state_dict().values())
        return self._net

    def _measure(self, net: nn.Module) -> dict:
        """mIoU, IoU of each class (None where it neither occurs nor is predicted), mean cross-entropy, counts."""
        classes = self.real.classes
        num_classes = classes.num_classes

        def of_image(logits: Tensor, label: Tensor) -> list[float]:
            counts = count_pairs(logits.argmax(0), label, num_classes)
            loss = F.cross_entropy(
                logits.double()[None], label.long()[None], ignore_index=IGNORE_INDEX, reduction="sum"
            )
            return [*counts.flatten().tolist(), loss.item()]

        *cells, losses = zip(*self._each(net, of_image))
        counts = np.array([sum(cell) for cell in cells], np.int64).reshape(num_classes, num_classes)
        found = score(counts, classes.names)
        iou = {name: found.per_class[name].iou if name in found.per_class else None for name in classes.names}
        loss = math.fsum(losses) / found.num_pixels
        return {
            "miou": found.miou,
            "iou": iou,
            "loss": loss if math.isfinite(loss) else None,
            "counts": counts.tolist(),
        }

    @torch.inference_mode()
    def _each(self, net: nn.Module, of_image: Callable[[Tensor, Tensor], list[float]]) -> list[list[float]]:
        """The numbers of every held-out image, in order, the same on all ranks; each rank makes those of its share.

        of_image: logits (K, H, W) float32 and label (H, W) of a whole image -> numbers. A bad record has none.
        """
        rank, world, device = distributed.rank(), distributed.world_size(), distributed.device()
        own: dict[int, list[float]] = {}
        for number in range(rank, len(self.places), world):
            if (sample := self._read(number)) is not None:
                image = torch.as_tensor(sample.sar, device=device)[None, None]
                label = torch.as_tensor(sample.label, device=device)
                own[number] = of_image(net(to_student(image))[0].float(), label)
        texts = distributed.all_gather_text(json.dumps(own))
        rows = {int(number): row for text in texts for number, row in json.loads(text).items()}
        if not rows:
            raise ValueError(
                f"none of the {len(self.places)} held-out samples of {self.real.folder} can be read; write the shards "
                "again"
            )
        return [rows[number] for number in sorted(rows)]

    def _read(self, number: int) -> Sample | None:
        try:
            return self.real.read(self.places[number])
        except BadRecord as error:
            if self.on_bad_record == "stop":
                raise BadRecord(
                    f"{error}. Fix the shard, or set data.on_bad_record: skip to leave the image out of the validation"
                ) from None
            if number not in self._bad:
                self._bad.add(number)
                say(f"{self.label}: left out of the validation: {error}")
            return None
