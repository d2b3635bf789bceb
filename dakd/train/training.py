"""The base class of all trainings (the net, data and files of a stage, DDPM or a student), and the loop that runs them.

The loop is the same for all: build, resume, step, report, checkpoint, finish.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.utils.data import Dataset

from dakd.config import Config, TrainJointNetConfig, TrainSarossConfig
from dakd.data.batch import Batch
from dakd.data.loader import make_loader, report_skipped
from dakd.data.sample import ClassTable
from dakd.runtime import distributed, precision
from dakd.runtime.kept_config import CONFIG
from dakd.runtime.lock import locked
from dakd.runtime.runlog import METRICS, RunLog, read_records, save_config, say
from dakd.runtime.sealed import files_of, read_manifest, remove_manifest, write_manifest
from dakd.runtime.seeding import seed_everything, seed_step
from dakd.runtime.stopping import (
    MARKER_FILE,
    Preempted,
    StopListener,
    listen_for_stop,
    stop_reason,
    write_requeue_marker,
)
from dakd.runtime.tensor_files import load_state, load_strict, read_metadata
from dakd.train.checkpoint import (
    list_checkpoints,
    load_latest,
    refuse_another_experiment,
    save_checkpoint,
    step_of,
    write_state,
)
from dakd.train.engine import Engine
from dakd.train.optim import POSTHOC_LENGTHS, learning_rate, optimizer_identity
from dakd.train.posthoc import FOLDER as POSTHOC
from dakd.train.zero import fitting_micro_batch

WEIGHTS = ("raw", "ema")  # the kinds of final weights


class Training(ABC):
    """The base of all trainings.

    A subclass sets the attributes and defines the abstract methods; nothing else of a training differs.
    """

    config: Config  # the whole experiment
    section: TrainJointNetConfig | TrainSarossConfig  # this training's part of it: batches, optimizer, engine
    label: str  # in reports
    folder: Path  # of the log, checkpoints and weights
    dataset: Dataset
    classes: ClassTable
    data: list[str]  # what identifies the samples, such as the fingerprints of sets of shards
    total_steps: int  # optimizer steps
    lr: float  # after the warm-up
    seed: int  # of the initial weights, the order of the samples and the noise
    key: ClassVar[str]  # of the section in an experiment's YAML
    low_precision: ClassVar[str]  # what `engine.precision: auto` means on a GPU, and on a CPU where bf16 pays
    decays_vectors: ClassVar[bool]  # whether weight decay acts on biases and norm weights too

    @abstractmethod
    def build(self, is_new: bool) -> nn.Module:
        """The module that computes the losses of a batch, around the net; the same on every rank.

        is_new: False where a checkpoint's weights will replace the initial ones.
        """

    @abstractmethod
    def pays_in_bf16(self, module: nn.Module) -> bool:
        """Whether a CPU that computes in bf16 trains this module faster in it (runtime/precision.py)."""

    @abstractmethod
    def own_identity(self) -> dict:
        """The settings peculiar to this kind of training that a checkpoint must share."""

    @abstractmethod
    def weights_file(self, kind: str) -> Path:
        """The file of the final `raw` or `ema` weights."""

    @abstractmethod
    def finish(self, engine: Engine) -> None:
        """Write the final weights; a collective."""

    def after_step(self, engine: Engine, step: int) -> None:  # noqa: B027 (a hook: not every training has one)
        """Called after each step and its checkpoint, on all ranks: the teachers' trainings draw pictures here."""

    @property
    def end_step(self) -> int:
        """The last step: `total_steps`, or an earlier one at which the training has ended by itself."""
        return self.total_steps

    def begin(self, first_step: int) -> None:  # noqa: B027 (a hook, as above)
        """Called once, on all ranks, before the steps after `first_step` are taken; 0 for a new training."""

    def score(self, engine: Engine, step: int) -> dict[str, float]:
        """Called after each step, before its checkpoint, on all ranks; returns values for the step's log line."""
        return {}

    @property
    def own_files(self) -> list[Path]:
        """Files that the manifest lists, where they are there, besides those of every training."""
        return []

    @cached_property
    def identity(self) -> dict:
        """All settings that a checkpoint must share with the training that resumes it; kept in weights files too.

        What changes neither the weights nor the order of the samples (processes, micro-batch, ZeRO) is left out.
        """
        return self.own_identity() | {
            "num_classes": self.classes.num_classes,
            "global_batch": self.section.global_batch,
            "crop": list(self.section.crop),
            "flip": self.section.flip,
            "seed": self.config.seed,
            "window_shards": self.config.data.window_shards,
            "data": self.data,
            "optimizer": optimizer_identity(self.section.optimizer, self.lr, self.total_steps),
        }

    @property
    def micro_batch(self) -> int:
        """Samples a rank and forward pass; ValueError where the ranks cannot share the global batch."""
        return fitting_micro_batch(self.section.global_batch, self.section.micro_batch, distributed.world_size())

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.section.engine.channels_last else torch.contiguous_format

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def is_done(self) -> bool:
        """Whether the last step was taken and its weights are there."""
        checkpoints = list_checkpoints(self.checkpoints)
        last_step = step_of(checkpoints[-1]) if checkpoints else 0
        return last_step >= self.end_step and self.weights_file("ema").exists()

    def is_done_without_checkpoints(self) -> bool:
        """Whether the final weights of these settings are there, and their checkpoints were removed.

        ValueError where such weights are of other settings, or of fewer or more steps: they would be written over.
        """
        path = self.weights_file("ema")
        try:
            if list_checkpoints(self.checkpoints) or not path.is_file() or read_manifest(self.folder) is None:
                return False
            facts = read_metadata(path)
            records = read_records(self.folder / METRICS)
            end_step = self.end_step
        except (ValueError, OSError):  # damaged: they are made again
            return False
        refuse_another_experiment(path, {name: facts.get(name) for name in self.identity}, self.identity)
        steps = records[-1]["step"] if records else end_step
        if steps != end_step:
            raise ValueError(
                f"{path} was trained for {steps} steps, and its checkpoints are gone; expected {end_step} "
                f"steps: set them back, or remove {self.folder} to train again"
            )
        return True

    def has_whole_weights(self) -> bool:
        """Whether both weights files are those that `finish` wrote; a fault is printed."""
        try:
            if read_manifest(self.folder) is None:  # the writer was killed before it had finished
                return False
            for kind in WEIGHTS:
                load_state(self.weights_file(kind))
        except (ValueError, OSError) as error:
            say(f"{self.label}: the final weights are written again from the last checkpoint: {error}")
            return False
        return True


def run_training(training: Training) -> None:
    """Train to the last step; the same call again resumes from the newest checkpoint, or finds nothing left to do.

    Raises RuntimeError where another process is at work in the same folder, and Preempted where the ranks were asked to
    stop: the checkpoint of the step that they had reached is then there, and a marker in the training's folder.
    """
    distributed.init_process_group()
    distributed.limit_threads(training.section.engine.threads)
    with locked(training.folder), listen_for_stop(training.config.run_path) as listener:
        _run(training, listener)
    distributed.barrier()  # rank 0 has written all its files before any rank begins the next training


def _run(training: Training, listener: StopListener) -> None:
    section, config = training.section, training.config
    micro_batch = training.micro_batch  # first, to refuse before anything is written
    precision.refuse_emulated(section.engine.precision, f"{training.key}.engine.precision", distributed.device())
    saved = load_latest(training.checkpoints, training.identity)
    first_step = saved[1]["step"] if saved else 0
    if distributed.is_main():
        (training.folder / MARKER_FILE).unlink(missing_ok=True)
    is_done = training.is_done_without_checkpoints() if saved is None else training.is_done()
    if distributed.broadcast(distributed.is_main() and is_done and training.has_whole_weights()):
        say(f"{training.label}: {first_step or training.end_step} steps are done; nothing to do")
        return
    _stop_if_requested(training, first_step, distributed.all_reduce_sum(listener.votes(section.engine.max_hours)))

    if distributed.is_main():
        remove_manifest(training.folder)
    save_config(config, training.folder)
    seed_everything(training.seed)
    module = training.build(saved is None)
    if saved:
        say(f"{training.label}: resumes after step {first_step} of {training.total_steps}")
        # Before the engine is built: DeepSpeed takes its fp32 masters from the weights that it finds.
        load_strict(module, _module_state(saved[0]), f"checkpoint of step {first_step}")
    chosen = _precision(training, module, saved[1].get("precision", "fp32") if saved else None)
    engine = Engine(
        module,
        section.optimizer,
        section.engine,
        global_batch=section.global_batch,
        micro_batch=micro_batch,
        precision=chosen,
        decays_vectors=training.decays_vectors,
    )
    if saved:
        engine.restore(saved[0], first_step, lambda: _batches(training, first_step))
    del saved  # a copy of all states, which would fill the host while training
    _train_steps(training, engine, first_step, listener, chosen)
    _finish(training, engine)
    engine.close()


def _finish(training: Training, engine: Engine) -> None:
    """Write the final weights, and the manifest of them, the log, the settings and the pictures; a collective."""
    training.finish(engine)
    if distributed.is_main():
        files = [*map(training.weights_file, WEIGHTS), training.folder / METRICS, training.folder / CONFIG]
        files += [*files_of(training.folder / "samples"), *training.own_files]
        write_manifest(training.folder, [path for path in files if path.exists()])


def _precision(training: Training, module: nn.Module, began: str | None) -> str:
    """The precision to train in, the same on all ranks.  began: that of the checkpoint to resume from, or None."""
    setting, key = training.section.engine.precision, f"{training.key}.engine.precision"
    given = setting, key, training.low_precision, distributed.device(), training.pays_in_bf16(module)
    chosen = precision.choose(*given) if began is None else precision.keep(began, *given)
    # Hosts may differ, and all ranks must compute alike.
    others = set(distributed.all_gather_text(chosen.name)) - {chosen.name}
    if others:
        chosen = precision.Precision("fp32", "not all hosts compute in bf16")
    if chosen.reason:
        say(f"{training.label}: precision: {chosen.name} ({chosen.reason})")
    return chosen.name


def _train_steps(training: Training, engine: Engine, first_step: int, listener: StopListener, chosen: str) -> None:
    """chosen: the precision, for the checkpoints."""
    section, settings, total_steps = training.section, training.section.engine, training.total_steps
    training.begin(first_step)
    log = RunLog(training.folder, training.label, total_steps, first_step, settings.wandb, training.config)
    batches = _batches(training, first_step)
    since_s, since_step = time.monotonic(), first_step
    num_bad_records = 0.0  # of all ranks, since this start
    for step in range(first_step + 1, total_steps + 1):
        if step > training.end_step:
            break
        lr = learning_rate(step - 1, total_steps, training.lr, section.optimizer)
        # Foreign modules (dropout) draw from global generators, whose state a checkpoint does not hold.
        seed_step(training.seed, step, distributed.rank())
        result = engine.train_step(batches, lr, listener.votes(settings.max_hours))
        num_bad_records += result.losses.pop("num_bad_records")
        log.advance()
        # Before the log line and the checkpoint: a run that resumes from that one has the scores of its step.
        scores = training.score(engine, step)
        end_step = training.end_step
        if scores or log.is_due(step, settings.log_every):
            now_s = time.monotonic()
            rate = (step - since_step) * section.global_batch / max(1e-9, now_s - since_s)
            # Counts (num_...) are reported only where something was counted.
            values = {name: value for name, value in result.losses.items() if value or not name.startswith("num_")}
            values |= {"num_bad_records": num_bad_records} if num_bad_records else {}
            values |= {**scores, "grad": result.grad_norm, "lr": lr}
            log.report(step, step * section.global_batch, values, rate)
            since_s, since_step = now_s, step
        is_leaving = step < end_step and stop_reason(result.stop_votes) is not None
        # Before the checkpoint: a run that resumes from that one has the snapshot.
        if is_due(section.optimizer.posthoc_every, step, end_step):
            _write_snapshot(training, engine, step)
        if is_leaving or is_due(settings.checkpoint_every, step, end_step):
            # Before the checkpoint, so that the log is never behind the step that a resume starts from.
            log.flush()
            facts = _checkpoint_facts(training, step, lr) | {"precision": chosen}
            save_checkpoint(training.checkpoints, step, engine.state(), facts, settings.keep_checkpoints)
        if is_leaving:
            log.close()
            _stop_if_requested(training, step, result.stop_votes)
        training.after_step(engine, step)
    log.close()


def is_due(every: int, step: int, total_steps: int) -> bool:
    """Whether something is due that happens every so many steps, 0 for never, and after the last one."""
    return every > 0 and (step % every == 0 or step == total_steps)


def _write_snapshot(training: Training, engine: Engine, step: int) -> None:
    """The averages from which `dakd ema` makes one of any length."""
    averages = engine.averages([f"posthoc_{i}" for i in range(len(POSTHOC_LENGTHS))])
    if distributed.is_main():
        facts = {"step": step, "lengths": POSTHOC_LENGTHS}
        write_state(training.folder / POSTHOC / f"step-{step:08d}", averages, facts)


def _stop_if_requested(training: Training, step: int, votes: list[float]) -> None:
    """Raise Preempted on all ranks, once the marker is written, where the ranks' summed votes hold a reason."""
    reason = stop_reason(votes)
    if reason is None:
        return
    if distributed.is_main():
        write_requeue_marker(training.folder, reason, step, training.total_steps)
    distributed.barrier()  # a launcher ends all ranks as soon as one has left
    raise Preempted(
        f"{training.label}: stopped after step {step} of {training.total_steps} ({reason}); "
        "the same command resumes from its checkpoint"
    )


def _checkpoint_facts(training: Training, step: int, lr: float) -> dict:
    """The facts of a checkpoint, next to its tensors."""
    return {
        "identity": training.identity,
        "position": step * training.section.global_batch,
        "scheduler": {"name": training.section.optimizer.lr_decay, "step": step, "lr": lr},
        # Nothing is drawn from a generator that outlives a step: the next step's state follows from these two numbers.
        "rng": {"seed": training.seed, "step": step},
        "world_size": distributed.world_size(),
        "config": training.config.model_dump(mode="json"),
    }


def _batches(training: Training, step: int) -> Iterator[Batch]:
    """This rank's micro-batches from the start of optimizer step `step` (0-based)."""
    loader = make_loader(
        training.dataset,
        training.micro_batch,
        distributed.rank(),
        distributed.world_size(),
        step * training.section.global_batch,
        training.section.engine.num_workers,
        pin_memory=distributed.device().type == "cuda",
    )
    return report_skipped(iter(loader), training.folder)


def _module_state(state: dict) -> dict:
    kinds = ("master/", "frozen/", "buffer/")
    return {name.partition("/")[2]: value for name, value in state.items() if name.startswith(kinds)}
