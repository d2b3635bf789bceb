"""Synthetic pairs from the teacher, as shards.

A shard is a function of (checkpoint, settings, shard index): sample i starts from noise keyed by (seed, i), so the set
is the same however many processes make it, to rounding. Ranks take the shards in turn; finished shards are kept, also
when more pairs are asked for later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from dakd.config import Config
from dakd.data.pictures import contact_sheet
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet, shard_name, write_index, write_shard
from dakd.diffusion.sampler import PairSampler, start_noise, to_grey
from dakd.diffusion.schedule import CosineSchedule
from dakd.runtime import distributed
from dakd.runtime.files import file_hash
from dakd.runtime.runlog import progress, save_config, say
from dakd.weights import load_teacher

SHEET_PAIRS = 32


def generate(config: Config) -> Path:
    """Write `generate.num_samples` pairs into the run's `generate` folder and return it.

    Each record holds the image (uint8), the teacher's last raw logits (by the codec) and the sample's provenance.
    Raises ValueError where the teacher is not trained, or where the folder holds shards made with other settings, or
    more pairs than are asked for.
    """
    distributed.init_if_many()
    cfg = config.generate
    teacher = config.run_path / "train_jointnet" / "stage3" / f"weights_{cfg.weights}.safetensors"
    if not teacher.exists():
        raise ValueError(f"no trained teacher at {teacher}; run train_jointnet first")
    device = distributed.device()
    net, facts = load_teacher(teacher, device)
    dtype = _dtype(cfg.precision, device)
    net = net.to(dtype=dtype, memory_format=torch.channels_last)
    distributed.limit_threads(config.train_jointnet.engine.threads)
    schedule = CosineSchedule(**facts["schedule"])
    sampler = PairSampler(
        net,
        schedule,
        cfg.sampling_steps,
        b=facts["b"],
        eta=cfg.eta,
        clip=cfg.clip,
        device=device,
        dtype=dtype,
        capture=device.type == "cuda" if cfg.capture == "auto" else cfg.capture,
    )
    provenance = {
        "seed": cfg.seed,
        "sampler": "ddim",
        "steps": cfg.sampling_steps,
        "eta": cfg.eta,
        "clip": cfg.clip,
        "b": facts["b"],
        "checkpoint": file_hash(teacher),
        "weights": cfg.weights,
        "size": list(cfg.size),
        "shard_size": cfg.shard_size,
        "precision": str(dtype).removeprefix("torch."),
        "codec": cfg.codec,
    }
    if cfg.codec != "fp16":
        provenance["temperature"] = config.soft_label_temperature
    classes = ClassTable.from_dict(facts["classes"])
    folder = config.run_path / "generate"
    _write_shards(config, sampler, classes, folder, provenance)
    distributed.barrier()
    if distributed.is_main():
        write_index(folder, classes, kind="synthetic", codec=cfg.codec, provenance=provenance)
        _draw_sheet(ShardSet(folder), folder / "contact_sheet.png")
        say(f"generate: {cfg.num_samples} pairs in {folder}")
    distributed.barrier()
    return folder


def _write_shards(config: Config, sampler: PairSampler, classes: ClassTable, folder: Path, provenance: dict) -> None:
    cfg = config.generate
    size, stop = cfg.shard_size, cfg.num_samples
    wanted = [range(first, min(stop, first + size)) for first in range(0, stop, size)]
    _refuse_surplus(folder, len(wanted), stop)
    # A shard belongs to one rank whatever is there already: ranks that look at different moments still agree.
    finished = {shard for shard, indices in enumerate(wanted) if _is_finished(folder, shard, indices, provenance)}
    save_config(config, folder)
    if finished:
        say(f"generate: {len(finished)} of {len(wanted)} shards are there already")
    mine = range(distributed.rank(), len(wanted), distributed.world_size())
    ranges = {shard: wanted[shard] for shard in mine if shard not in finished}
    total = sum(len(indices) for indices in ranges.values())
    ticker = progress(range(total), total, "generate")
    for shard, indices in ranges.items():
        samples = _samples(sampler, classes, indices, config, provenance)
        counted = (sample for sample, _ in zip(samples, ticker))
        write_shard(
            folder,
            shard,
            counted,
            classes,
            codec=cfg.codec,
            provenance=provenance,
            temperature=config.soft_label_temperature,
        )


def _samples(
    sampler: PairSampler, classes: ClassTable, indices: range, config: Config, provenance: dict
) -> Iterator[Sample]:
    cfg = config.generate
    facts = {name: provenance[name] for name in ("seed", "sampler", "steps", "b", "checkpoint")}
    for first in range(indices.start, indices.stop, cfg.micro_batch):
        ids = range(first, min(indices.stop, first + cfg.micro_batch))
        x, y = start_noise(cfg.seed, ids, cfg.size, classes.num_classes)
        image, logits = sampler(x, y, sample_ids=torch.tensor(ids), seed=cfg.seed)
        grey, soft = to_grey(image)[:, 0].cpu().numpy(), logits.float().cpu().numpy()
        for index, sar, soft_label in zip(ids, grey, soft):
            yield Sample(f"synthetic-{index:08d}", sar, soft_label=soft_label, meta={"index": index, **facts})


def _refuse_surplus(folder: Path, num_shards: int, num_samples: int) -> None:
    surplus = [path for path in folder.glob("shard-*.json") if path.stem >= shard_name(num_shards)]
    if surplus:
        raise _too_many(folder, num_samples)


def _is_finished(folder: Path, shard: int, indices: range, provenance: dict) -> bool:
    """Whether a shard is there with all its pairs; ValueError when other settings made it or it has more of them.

    A last shard that the set has outgrown is not finished: it is made again, longer.
    """
    sidecar = folder / f"{shard_name(shard)}.json"
    if not sidecar.exists():
        return False
    facts = json.loads(sidecar.read_text())
    differing = [key for key, value in provenance.items() if facts["provenance"].get(key) != value]
    if differing:
        raise ValueError(
            f"{sidecar} was made with another {', '.join(sorted(differing))}; set it back to keep the shards, "
            f"or remove {folder} to generate anew"
        )
    if facts["num_samples"] > len(indices):
        raise _too_many(folder, indices.stop)
    return facts["num_samples"] == len(indices)


def _too_many(folder: Path, num_samples: int) -> ValueError:
    return ValueError(
        f"{folder} holds more than generate.num_samples ({num_samples}) pairs; to train on the first of them set "
        f"train_saross.num_synthetic, or remove {folder} to generate anew"
    )


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _draw_sheet(shards: ShardSet, path: Path) -> None:
    samples = [shards.read(i) for i in range(min(SHEET_PAIRS, len(shards)))]
    contact_sheet(samples, shards.classes, columns=4, scale=max(1, 96 // samples[0].sar.shape[0])).save(path)
