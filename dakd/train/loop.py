"""The loop that every training shares: build, resume, step, report, checkpoint, finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from torch.utils.data import Dataset

from dakd.config import Config, EngineConfig, OptimizerConfig
from dakd.data.batch import Batch
from dakd.data.loader import make_loader, report_skipped
from dakd.runtime import distributed
from dakd.runtime.lifetime import MARKER, Listener, Preempted, leave_marker, listening, wished_reason
from dakd.runtime.lock import locked
from dakd.runtime.runlog import RunLog, save_config, say
from dakd.runtime.seeding import seed_everything, seed_step
from dakd.train.checkpoint import list_checkpoints, load_latest, save_checkpoint, step_of, write_state
from dakd.train.ema import POSTHOC_LENGTHS
from dakd.train.engine import Engine, fitting_micro_batch
from dakd.train.optim import learning_rate
from dakd.train.posthoc import FOLDER as POSTHOC
from dakd.weights import load_strict


@dataclass(frozen=True)
class Training:
    """What is particular about one training.

    build: (is_new) makes the training module; initial weights matter only when it is new (same on every rank).
    micro_batch: the most samples a rank and forward pass.
    identity: settings that a checkpoint must share to be continued.
    draw: (engine, folder, step) writes a sample grid; a collective; None draws nothing.
    finish: (engine) writes the final weights; a collective.
    """

    label: str
    folder: Path
    build: Callable[[bool], nn.Module]
    dataset: Dataset
    total_steps: int
    lr: float
    global_batch: int
    micro_batch: int
    seed: int
    optimizer: OptimizerConfig
    engine: EngineConfig
    precision: str
    decays_vectors: bool
    identity: dict
    final_weights: Path
    finish: Callable[[Engine], None]
    draw: Callable[[Engine, Path, int], None] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def is_done(training: Training) -> bool:
    """Whether the last step was taken and its weights are there."""
    checkpoints = list_checkpoints(training.checkpoints)
    last_step = step_of(checkpoints[-1]) if checkpoints else 0
    return last_step >= training.total_steps and training.final_weights.exists()


def run_training(training: Training, config: Config) -> None:
    """Train to the last step; the same call again goes on from the newest checkpoint, or finds nothing left to do.

    Raises RuntimeError where another process is at work in the same folder, and Preempted when the ranks were asked to
    stop: the checkpoint of the step that they had reached is then there, and a marker in the training's folder.
    """
    distributed.init_process_group()
    distributed.limit_threads(training.engine.threads)
    with locked(training.folder), listening(config.run_path) as listener:
        _run(training, config, listener)
    distributed.barrier()  # what rank 0 has written is there for all, before the next training looks for it


def _run(training: Training, config: Config, listener: Listener) -> None:
    micro_batch = fitting_micro_batch(training.global_batch, training.micro_batch, distributed.world_size())
    training = replace(training, micro_batch=micro_batch)
    saved = load_latest(training.checkpoints, training.identity)
    first_step = saved[1]["step"] if saved else 0
    if distributed.is_main():
        (training.folder / MARKER).unlink(missing_ok=True)
    if distributed.broadcast(is_done(training)):
        say(f"{training.label}: {first_step} steps are done; nothing to do")
        return
    _leave_if_wished(training, first_step, distributed.all_reduce_sum(_wishes(training, listener)))

    save_config(config, training.folder)
    seed_everything(training.seed)
    module = training.build(saved is None)
    if saved:
        say(f"{training.label}: goes on after step {first_step} of {training.total_steps}")
        load_strict(module, _module_state(saved[0]), f"checkpoint of step {first_step}")
    engine = Engine(
        module,
        training.optimizer,
        training.engine,
        global_batch=training.global_batch,
        micro_batch=training.micro_batch,
        precision=training.precision,
        decays_vectors=training.decays_vectors,
    )
    if saved:
        engine.restore(saved[0], first_step, lambda: _batches(training, first_step))
    del saved
    _train_steps(training, engine, first_step, config, listener)
    training.finish(engine)
    engine.close()


def _train_steps(training: Training, engine: Engine, first_step: int, config: Config, listener: Listener) -> None:
    settings = training.engine
    log = RunLog(training.folder, training.label, training.total_steps, first_step, settings.wandb, config)
    batches = _batches(training, first_step)
    since_s, since_step = time.monotonic(), first_step
    num_bad_records = 0.0  # of all ranks, since this start
    for step in range(first_step + 1, training.total_steps + 1):
        lr = learning_rate(step - 1, training.total_steps, training.lr, training.optimizer)
        seed_step(training.seed, step, distributed.rank())
        result = engine.train_step(batches, lr, _wishes(training, listener))
        num_bad_records += result.losses.pop("num_bad_records")
        log.advance()
        if log.is_due(step, settings.log_every):
            now_s = time.monotonic()
            rate = (step - since_step) * training.global_batch / max(1e-9, now_s - since_s)
            told = {name: value for name, value in result.losses.items() if value or not name.startswith("num_")}
            told |= {"num_bad_records": num_bad_records} if num_bad_records else {}
            values = {**told, "grad": result.grad_norm, "lr": lr}
            log.report(step, step * training.global_batch, values, rate)
            since_s, since_step = now_s, step
        is_last = step == training.total_steps
        every = training.optimizer.posthoc_every
        if every and (is_last or step % every == 0):  # before the checkpoint: what goes on from that one has it
            _write_snapshot(training, engine, step)
        is_leaving = not is_last and wished_reason(result.wishes) is not None
        if is_last or is_leaving or step % settings.checkpoint_every == 0:
            log.flush()
            facts = _checkpoint_facts(training, config, step, lr)
            save_checkpoint(training.checkpoints, step, engine.state(), facts, settings.keep_checkpoints)
        if is_leaving:
            log.close()
            _leave_if_wished(training, step, result.wishes)
        if training.draw and settings.sample_every and (is_last or step % settings.sample_every == 0):
            training.draw(engine, training.folder / "samples", step)
    log.close()


def _write_snapshot(training: Training, engine: Engine, step: int) -> None:
    """The averages of which `dakd ema` makes one of any length."""
    averages = engine.averages([f"posthoc_{i}" for i in range(len(POSTHOC_LENGTHS))])
    if distributed.is_main():
        facts = {"step": step, "lengths": POSTHOC_LENGTHS}
        write_state(training.folder / POSTHOC / f"step-{step:08d}", averages, facts)


def _wishes(training: Training, listener: Listener) -> list[float]:
    return listener.wishes(training.engine.max_hours)


def _leave_if_wished(training: Training, step: int, wishes: list[float]) -> None:
    """Raise Preempted on all ranks, once the marker is written, where the ranks' summed wishes hold a reason."""
    reason = wished_reason(wishes)
    if reason is None:
        return
    if distributed.is_main():
        leave_marker(training.folder, reason, step, training.total_steps)
    distributed.barrier()  # a launcher ends all ranks as soon as one has left
    raise Preempted(
        f"{training.label}: stopped after step {step} of {training.total_steps} ({reason}); "
        "the same command goes on from its checkpoint"
    )


def _checkpoint_facts(training: Training, config: Config, step: int, lr: float) -> dict:
    """What a checkpoint tells beside its tensors."""
    return {
        "identity": training.identity,
        "position": step * training.global_batch,
        "scheduler": {"name": training.optimizer.lr_decay, "step": step, "lr": lr},
        # Nothing is drawn from a generator that outlives a step: the next step's state follows from these two numbers.
        "rng": {"seed": training.seed, "step": step},
        "world_size": distributed.world_size(),
        "config": config.model_dump(mode="json"),
    }


def _batches(training: Training, step: int) -> Iterator[Batch]:
    """This rank's micro-batches from the start of optimizer step `step` (0-based)."""
    loader = make_loader(
        training.dataset,
        training.micro_batch,
        distributed.rank(),
        distributed.world_size(),
        step * training.global_batch,
        training.engine.num_workers,
        pin_memory=distributed.device().type == "cuda",
    )
    return report_skipped(iter(loader), training.folder)


def _module_state(state: dict) -> dict:
    kinds = ("master/", "frozen/", "buffer/")
    return {name.partition("/")[2]: value for name, value in state.items() if name.startswith(kinds)}
