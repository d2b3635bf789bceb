"""Synthetic pairs from the teacher, as shards, by any number of workers on any number of hosts that share a folder.

A shard is a function of (checkpoint, settings, shard index): sample i starts from noise keyed by (seed, i). Work is
done at least once and published exactly once, so workers may be started, killed and started again at any time: as ranks
of `deepspeed` or torchrun, as tasks of a SLURM array, or by hand.
"""

from __future__ import annotations

from pathlib import Path

from dakd.config import Config
from dakd.generate.finish import draw_sheet, finish, retract
from dakd.generate.gate import advance, open_gate
from dakd.generate.plan import Plan, place_from_environment, settle
from dakd.generate.progress import Progress
from dakd.generate.survey import clear_away, find_faults, open_plan, teacher_classes
from dakd.generate.teacher import PairMaker, computed_deterministically
from dakd.generate.worker import Worker
from dakd.runtime.distributed import is_main
from dakd.runtime.runlog import save_config, say


def generate(config: Config) -> Path:
    """Work until the run's `generate` folder holds a set of `generate.num_samples` pairs, and return it.

    Without a gate these are the first candidates; with one, those that it keeps, of as many as that takes.

    Each record holds the image (uint8), the teacher's last raw logits (by the codec) and the sample's provenance.

    With `generate.deterministic` the shards are bitwise equal on one device type. Elsewhere the size of a micro-batch
    changes the order of sums: in fp32 at least 99.9 % of the pixels agree within one grey level, and softened labels
    within 1e-3. In bf16 it depends on the device. Measured with the demo's trained teacher on a CPU with AVX-512 BF16
    (25 steps, 32 pairs of 64 x 64): micro-batches of 16 and of 5 make equal pairs; against fp32, 99.5 % of the pixels
    lie within one grey level and all within 20, softened labels (tau = 2) within 1e-3 in 94 % and within 7e-3 in 99 %
    of the entries, and 0.09 % of the pixels are of another class.
    Raises ValueError where the teacher is not trained, where the folder holds shards made with other settings, where a
    shard that is there is not sound, or where the gate keeps too few of the candidates that it may have.
    """
    with computed_deterministically(config.generate.deterministic):
        return _generate(config)


def repair(config: Config) -> Path:
    """Put what is not sound into `quarantine/`, and make it and what is missing again; the folder.

    Workers may be at work meanwhile.
    """
    if is_main():
        plan = open_plan(config)
        for line in clear_away(plan, find_faults(plan, teacher_classes(config))):
            say(f"generate: {line}")
    return generate(config)


def verify(config: Config) -> None:
    """Raises ValueError with a list of all that is wrong with the set, where it is not complete and sound."""
    plan = open_plan(config)
    if faults := find_faults(plan, teacher_classes(config)):
        lines = "\n".join(f"  {fault.what}" for fault in faults)
        raise ValueError(f"{len(faults)} faults in {plan.folder}; run the same with --repair to mend them\n{lines}")
    say(f"generate: {plan.num_shards} shards in {plan.folder} are complete and sound")


def preview(config: Config, num_pairs: int) -> Path:
    """A contact sheet of the first pairs, drawn without writing a shard; its path."""
    with computed_deterministically(config.generate.deterministic):
        maker = PairMaker.from_config(config)
        samples = list(maker.pairs(range(num_pairs)))
    path = config.run_path / "generate" / "preview.png"
    draw_sheet(samples, maker.classes, path)
    say(f"generate: {num_pairs} pairs drawn in {path}")
    return path


def _generate(config: Config) -> Path:
    cfg, folder = config.generate, config.run_path / "generate"
    maker = PairMaker.from_config(config)
    plan = Plan(folder, cfg.num_samples, cfg.shard_size, maker.provenance, open_gate(config, maker.classes))
    settle(plan)
    save_config(config, folder)
    plan = _fill(plan, maker)
    finish(plan, maker.classes)
    say(f"generate: {cfg.num_samples} pairs in {folder}")
    return folder


def _fill(plan: Plan, maker: PairMaker) -> Plan:
    """Work until all shards are there, and as many more as the gate asks for; the plan of the finished set."""
    place = place_from_environment()
    while True:
        retract(plan)
        progress = Progress(plan)
        if progress.num_there_before:
            say(f"generate: {progress.num_there_before} of {plan.num_shards} shards are there already")
        Worker(plan, maker, place, progress).run()
        if plan.gate is None:
            return plan
        num_shards, plan = plan.num_shards, advance(plan)
        if plan.selection is not None:
            say(f"generate: the gate keeps {plan.num_samples} pairs of {plan.selection.num_candidates} candidates")
            return plan
        say(f"generate: the gate asks for {plan.num_shards - num_shards} shards more")
