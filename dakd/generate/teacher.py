"""The teacher as generation uses it: a plain module with its trained weights, its sampler, and the pairs it makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dakd.config import Config, GenerateConfig
from dakd.data.sample import ClassTable, Sample
from dakd.diffusion.labels import reading_of
from dakd.diffusion.sampler import PairSampler, start_noise, to_grey
from dakd.diffusion.schedule import CosineSchedule
from dakd.generate.plan import provenance_of, sample_key
from dakd.runtime import distributed
from dakd.runtime.files import file_hash
from dakd.weights import load_teacher


class Teacher:
    """A sampler of pairs.

    provenance: what its samples are a function of.  Raises ValueError where the teacher is not trained.
    """

    def __init__(self, config: Config) -> None:
        self.cfg = config.generate
        path = teacher_file(config)
        self.device = distributed.device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        threads = _set_threads(self.cfg)
        dtype = _dtype(self.cfg.precision, self.device)
        net, facts = load_teacher(path, self.device)
        self._label_channels = net.label_channels
        self.classes = ClassTable.from_dict(facts["classes"])
        self.provenance = provenance_of(
            self.cfg,
            checkpoint=file_hash(path),
            b=facts["b"],
            precision=str(dtype).removeprefix("torch."),
            threads=threads,
            temperature=config.soft_label_temperature,
        )
        self._sampler = PairSampler(
            net.to(dtype=dtype, memory_format=torch.channels_last),
            CosineSchedule(**facts["schedule"]),
            self.cfg.sampling_steps,
            b=facts["b"],
            eta=self.cfg.eta,
            clip=self.cfg.clip,
            reading=reading_of(facts),
            sigma_data=facts.get("sigma_data"),
            device=self.device,
            dtype=dtype,
            tabulate_time=True,
            capture=self.device.type == "cuda" if self.cfg.capture == "auto" else self.cfg.capture,
        )

    def pairs(self, indices: range, before_each: Callable[[int], None] = lambda count: None) -> Iterator[Sample]:
        """The samples of these numbers, in order, made a micro-batch at a time.

        before_each: called with the number of samples made before each micro-batch.
        In deterministic mode the batches that the net sees are a function of `indices` alone, all of one size.
        """
        for first in range(indices.start, indices.stop, self.cfg.micro_batch):
            before_each(first - indices.start)
            ids = range(first, min(indices.stop, first + self.cfg.micro_batch))
            padding = self.cfg.micro_batch - len(ids) if self.cfg.deterministic else 0
            yield from self._micro_batch(ids, [ids[-1]] * padding)

    def _micro_batch(self, ids: range, padding: list[int]) -> Iterator[Sample]:
        padded = [*ids, *padding]
        x, y = start_noise(self.cfg.seed, padded, self.cfg.size, self._label_channels)
        image, logits = self._sampler(x, y, sample_ids=torch.tensor(padded), seed=self.cfg.seed)
        # The one place where the host waits for the device: once a micro-batch, after all steps.
        grey, soft = to_grey(image)[:, 0].cpu().numpy(), logits.float().cpu().numpy()
        for index, sar, soft_label in zip(ids, grey, soft):
            yield Sample(sample_key(index), sar, soft_label=soft_label, meta={"index": index, **self.provenance})

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def teacher_file_name(config: Config) -> Path:
    folder = config.run_path / "train_jointnet" / config.train_jointnet.stages[-1]
    return folder / f"weights_{config.generate.weights}.safetensors"


def teacher_file(config: Config) -> Path:
    """The weights that pairs are sampled from; ValueError where there are none yet."""
    path = teacher_file_name(config)
    if not path.exists():
        raise ValueError(f"no trained teacher at {path}; run train_jointnet first")
    return path


def _set_threads(cfg: GenerateConfig) -> int:
    # How a sum is split among threads decides its last bits.
    distributed.limit_threads(cfg.threads or int(cfg.deterministic))
    return torch.get_num_threads()


@contextmanager
def computed_deterministically(wanted: bool) -> Iterator[None]:
    """Let torch take algorithms whose results do not depend on the run, where that is wanted."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    backends, filling = torch.backends.cudnn, torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), backends.benchmark, filling.fill_uninitialized_memory
    # The same as use_deterministic_algorithms, which would import the whole compiler first: seconds a start.
    torch.set_deterministic_debug_mode("error")
    backends.benchmark = filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        backends.benchmark, filling.fill_uninitialized_memory = before[1:]


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32
