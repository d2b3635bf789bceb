"""Synthetic pairs from the teacher, as shards, by any number of workers on any number of hosts that share a folder.

A shard is a function of (checkpoint, settings, shard index): sample i starts from noise keyed by (seed, i). Work is
done at least once and published exactly once, so workers may be started, killed and started again at any time: as ranks
of `deepspeed` or torchrun, as tasks of a SLURM array, or by hand.
"""

from __future__ import annotations

from pathlib import Path

from dakd.config import Config
from dakd.generate.faults import clear_away, find_faults, refuse_changed_shards
from dakd.generate.gate import Gate, next_round, open_gate
from dakd.generate.plan import (
    GenerationPlan,
    Selection,
    open_plan,
    record_provenance,
    refuse_other_provenance,
    restore_provenance,
)
from dakd.generate.status import Progress
from dakd.generate.summaries import draw_sheet, retract_summaries, write_summaries
from dakd.generate.teacher import PairMaker, computed_deterministically, plan_of_settings, teacher_classes
from dakd.generate.worker import Worker, share_from_environment
from dakd.runtime.console import show
from dakd.runtime.distributed import is_main, rank, world_size
from dakd.runtime.place import how_to_run_alone
from dakd.runtime.runlog import save_config, say


def generate(config: Config) -> Path:
    """Work until the run's `generate` folder holds a set of `generate.num_samples` pairs, and return the folder.

    Without a gate these are the first candidates; with one, those that it keeps, of as many candidates as that takes.

    Each record holds the image (uint8), the teacher's last raw logits (by the codec) and the sample's provenance.

    With `generate.deterministic` the shards are bitwise equal on one device type. Elsewhere the size of a micro-batch
    changes the order of sums: in fp32 at least 99.9 % of the pixels agree within one grey level, and softened labels
    within 1e-3. In bf16 it depends on the device. Measured with the demo's trained teacher on a CPU with AMX (25 steps,
    32 pairs of 64 x 64) against fp32: 86 % of the pixels lie within one grey level and all within 5, softened labels
    (tau = 2) within 1e-3 in 91 % and within 7e-3 in 98 % of the entries, and 0.21 % of the pixels are of another class.
    Raises ValueError where the teacher is not trained, where the folder holds shards made with other settings, where a
    shard in it is damaged, or where the gate keeps too few of the candidates that it may have.
    """
    cfg, folder = config.generate, config.run_path / "generate"
    with computed_deterministically(cfg.deterministic):
        maker = PairMaker.from_config(config)
        gate = open_gate(config, maker.classes)
        plan = GenerationPlan(folder, cfg.num_samples, cfg.num_samples, cfg.shard_size, maker.provenance)
        record_provenance(plan)
        save_config(config, folder)
        if not is_main():  # of a left-over RANK, too
            place = f"rank {rank()} of {world_size()}"
            show(f"generate: {place} works at {folder}, and rank 0 reports; {how_to_run_alone()}")
        plan, selection = _make_shards(plan, gate, maker)
        refuse_changed_shards(plan, share_from_environment())
        write_summaries(plan, gate, selection, maker.classes)
        say(f"generate: {cfg.num_samples} pairs in {folder}")
    return folder


def repair(config: Config) -> Path:
    """Put damaged shards into `quarantine/`, and make them and the missing ones again; the folder.

    Other workers may be generating at the same time. Raises ValueError before anything is moved where the set was made
    with other settings; where its provenance.json alone says so, that file is written again.
    """
    if is_main():
        plan, classes = _plan_of_the_shards(config), teacher_classes(config)
        for line in clear_away(plan, find_faults(plan, classes, open_gate(config, classes))):
            say(f"generate: {line}")
    return generate(config)


def verify(config: Config) -> None:
    """Raises ValueError with a list of the set's faults, where it is not complete and intact."""
    plan, classes = open_plan(config), teacher_classes(config)
    if faults := find_faults(plan, classes, open_gate(config, classes)):
        lines = "\n".join(f"  {fault.what}" for fault in faults)
        raise ValueError(f"{len(faults)} faults in {plan.folder}; run the same with --repair to fix them\n{lines}")
    say(f"generate: {plan.num_shards} shards in {plan.folder} are complete and intact")


def preview(config: Config, num_pairs: int) -> Path:
    """A contact sheet of the first pairs, drawn without writing a shard; its path."""
    with computed_deterministically(config.generate.deterministic):
        maker = PairMaker.from_config(config)
        samples = list(maker.pairs(range(num_pairs)))
    path = config.run_path / "generate" / "preview.png"
    draw_sheet(samples, maker.classes, path)
    say(f"generate: {num_pairs} pairs drawn in {path}")
    return path


def _plan_of_the_shards(config: Config) -> GenerationPlan:
    """The started set's plan, by its provenance.json or, where that is wrong, by the shards and the settings."""
    plan, path = open_plan(config), config.run_path / "generate" / "provenance.json"
    wanted = plan_of_settings(config, plan)
    if wanted.provenance != plan.provenance:
        if not restore_provenance(plan, wanted):
            refuse_other_provenance(path, plan.provenance, wanted)
        say(f"generate: {path} was of another set and is written again: the shards agree with the settings")
    return wanted


def _make_shards(plan: GenerationPlan, gate: Gate | None, maker: PairMaker) -> tuple[GenerationPlan, Selection]:
    """Work until all shards are there, and as many more as the gate needs; the finished set's plan and selection."""
    share = share_from_environment()
    while True:
        retract_summaries(plan)
        progress = Progress(plan)
        if progress.num_shards_before:
            say(f"generate: {progress.num_shards_before} of {plan.num_shards} shards are there already")
        Worker(plan, gate, maker, share, progress).run()
        num_shards = plan.num_shards
        plan, selection = next_round(plan, gate)
        if selection is None:
            say(f"generate: the gate needs {plan.num_shards - num_shards} more shards")
            continue
        if gate is not None:
            say(f"generate: the gate keeps {plan.num_samples} pairs of {selection.num_candidates} candidates")
        return plan, selection
