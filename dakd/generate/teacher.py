"""The teacher: a trained net with the facts of its weights file, and the maker of the pairs of a set."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dakd.config import Config, GenerateConfig, validated
from dakd.config.base import LARGEST
from dakd.data.sample import ClassTable, Sample
from dakd.diffusion.label_reading import reading_of
from dakd.diffusion.sampler import PairSampler, start_noise, to_grey
from dakd.diffusion.schedule import CosineSchedule
from dakd.generate.plan import GenerationPlan, open_plan, refuse_other_provenance, sample_key
from dakd.hub import HubModel, local_weights
from dakd.runtime import distributed
from dakd.runtime.files import file_hash
from dakd.runtime.precision import Precision, choose, keep, pays_in_unet
from dakd.runtime.runlog import say
from dakd.runtime.tensor_files import load_state, read_metadata
from dakd.runtime.whole import whole_number
from dakd.weights import load_teacher

CLIP = 1.0  # bound of the absolute value of the estimated clean state; grey values lie within -1 and 1
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}  # as provenance has them
# The settings that change a pair by no more than a rounding (see `generate`).
_COMPUTED_BY = ("deterministic", "micro_batch", "threads")
# The settings of `generate` that `Teacher.sample` takes besides its own arguments.
_SETTINGS = ("solver", "spacing", "eta", "micro_batch", "deterministic", "threads", "capture")


class Teacher(HubModel):
    """A trained teacher of pairs, from its weights file alone.

    net: the denoiser (x_t, y_t, t) -> (x_hat, logits), in eval mode, in the precision that it samples in.
    classes: names and colours by class id.  b: the balancing factor.  schedule: the forward process.
    size: (height, width) in pixels of the crops that it was trained on.  facts: the file's metadata.
    """

    def __init__(self, path: str | Path, device: str | torch.device | None = None, precision: str = "auto") -> None:
        """path: a file of stage 2 or 3, or of a DDPM.  device: None takes a GPU where there is one.

        precision: fp32, bf16, or auto: bf16 on a GPU, and on a CPU with AMX where the net is wide; else fp32.
        Raises FileNotFoundError or ValueError where the file holds no teacher, and ValueError for bf16 on a CPU that
        would emulate it.
        """
        self.path = local_weights(path).absolute()
        self.device = distributed.device_of(device)
        _refuse_unknown(precision)
        with torch.inference_mode(False):  # tensors made in that mode have no version counter, see _count_changes
            net, self.facts = load_teacher(self.path, self.device)
        self.precision = _precision(precision, self.device, self.facts)
        self.dtype = torch.bfloat16 if self.precision.name == "bf16" else torch.float32
        # On a GPU torch's GroupNorm copies channels_last maps to contiguous ones and back: an H200 took 160 ms for a
        # step of the paper's net at batch 16, and 119 ms with contiguous maps.
        layout = torch.contiguous_format if self.device.type == "cuda" else torch.channels_last
        self.net = net.to(dtype=self.dtype, memory_format=layout)
        self.classes = ClassTable.from_dict(self.facts["classes"])
        self.b: float = self.facts["b"]
        self.schedule = CosineSchedule(**self.facts["schedule"])
        self._file_hash, self._versions = file_hash(self.path), self._count_changes()

    @property
    def checkpoint(self) -> str:
        """The sha256 of the file, followed by `-changed` where the net's weights were changed after loading."""
        return f"{self._file_hash}-changed" if self._is_changed() else self._file_hash

    def _is_changed(self) -> bool:
        return self._count_changes() != self._versions

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes, whose tensors count their changes from 0 again."""
        return self.__dict__ | {"_versions": self._is_changed()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._versions = [] if state["_versions"] else self._count_changes()

    def _count_changes(self) -> list[int]:
        """How often each tensor of the net was written to in place: torch counts that for autograd."""
        return [tensor._version for tensor in self.net.state_dict(keep_vars=True).values()]

    def __repr__(self) -> str:
        kind = "DDPM" if self.facts["kind"] == "ddpm" else "SAR-JointNet"
        return f"Teacher({kind}, classes: {', '.join(self.classes.names)}; b {self.b:.3f}; {self.device})"

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.facts.get("crop") or GenerateConfig().size
        return int(height), int(width)

    def sample(
        self,
        num: int,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        seed: int = 0,
        *,
        first: int = 0,
        **settings: Any,
    ) -> list[Sample]:
        """`num` pairs, the same as those that `dakd generate` makes from index `first` on with the same settings.

        size: (height, width) in pixels, multiples of the net's stride; None takes that of the training crops.
        steps: of the solver; None takes the paper's 200.  seed: of the start noise: pair i depends only on (seed, i).
        settings: solver, spacing, eta, micro_batch, deterministic, threads and capture of the section `generate`.
        Returns samples with `sar` (H, W) uint8 and `soft_label`, raw logits (K, H, W) float32.
        Raises ValueError for a setting that is out of its range or unknown.
        """
        return list(self.stream(num, size, steps, seed, first=first, **settings))

    def stream(
        self,
        num: int,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        seed: int = 0,
        *,
        first: int = 0,
        **settings: Any,
    ) -> Iterator[Sample]:
        """The pairs of `sample` one after the other, for more of them than fit in memory."""
        if unknown := [name for name in settings if name not in _SETTINGS]:
            raise ValueError(
                f"{', '.join(unknown)}: unknown to sample; it takes {', '.join(_SETTINGS)}; leave out others"
            )
        num, first = whole_number(num, "num_samples", 1), whole_number(first, "first", 0)
        if first + num > LARGEST:
            raise ValueError(f"first is {first}; expected the index of a pair, at most {LARGEST - num}")
        given = {"num_samples": num, "size": self.size if size is None else size, "seed": seed, **settings}
        given["weights"] = self.facts.get("weights", "ema")
        if steps is not None:
            given["sampling_steps"] = steps
        cfg = validated(GenerateConfig, given, "settings of the pairs")
        return self._stream(cfg, range(first, first + num))

    @classmethod
    def _from_file(cls, path: Path, **settings: Any) -> Teacher:
        return cls(path, **settings)

    def _state_and_metadata(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The file's tensors, which the net may hold in a lower precision; the net's own where either was changed."""
        if not self._is_changed() and self.path.is_file() and file_hash(self.path) == self._file_hash:
            return load_state(self.path), self.facts
        return {name: tensor.float() for name, tensor in self.net.state_dict().items()}, self.facts

    def _stream(self, cfg: GenerateConfig, indices: range) -> Iterator[Sample]:
        with _computed_as(cfg):
            maker = PairMaker(self, cfg, cfg.temperature or 1.0)
        for first in range(indices.start, indices.stop, cfg.micro_batch):
            # Restored before each yield: the caller must not run under the threads and algorithms of the sampling.
            with _computed_as(cfg):
                made = list(maker.pairs(range(first, min(indices.stop, first + cfg.micro_batch))))
            yield from made


class PairMaker:
    """Makes the pairs of one set: a teacher with the settings of `generate`.

    temperature: of the student's softened labels, for codecs that need it.  provenance: see `provenance_of`.
    """

    def __init__(self, teacher: Teacher, cfg: GenerateConfig, temperature: float) -> None:
        self.teacher, self.cfg, self.classes = teacher, cfg, teacher.classes
        device, dtype = teacher.device, teacher.dtype
        self.provenance = provenance_of(
            cfg,
            checkpoint=teacher.checkpoint,
            b=teacher.b,
            precision=str(dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            temperature=temperature,
        )
        self._sampler = PairSampler(
            teacher.net,
            teacher.schedule,
            cfg.sampling_steps,
            b=teacher.b,
            solver=cfg.solver,
            spacing=cfg.steps_spacing,
            eta=cfg.eta,
            clip=CLIP,
            reading=reading_of(teacher.facts),
            sigma_data=teacher.facts.get("sigma_data"),
            device=device,
            dtype=dtype,
            tabulate_time=True,
            # At small batches a GPU waits for Python to launch the kernels of a step; replaying the step from a CUDA
            # graph spares that. A graph holds for one batch size: a shard's smaller last micro-batch is captured again.
            capture=device.type == "cuda" if cfg.capture == "auto" else cfg.capture,
        )

    @classmethod
    def from_config(cls, config: Config) -> PairMaker:
        """The maker for an experiment's `generate`; ValueError where its teacher is not trained."""
        cfg = config.generate.model_copy(update={"seed": config.generate_seed})
        path, device = teacher_file(config), distributed.device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _set_threads(cfg)
        provenance = config.run_path / "generate" / "provenance.json"
        begun = open_plan(config).provenance if provenance.is_file() else {}
        chosen = _precision(cfg.precision, device, read_metadata(path), begun)
        if chosen.reason:
            say(f"generate: precision: {chosen.name} ({chosen.reason})")
        return cls(Teacher(path, device, chosen.name), cfg, config.soft_label_temperature)

    def pairs(self, indices: range, before_each: Callable[[int], None] = lambda count: None) -> Iterator[Sample]:
        """The samples of these indices, in order, made a micro-batch at a time.

        before_each: called with the number of samples made before each micro-batch.
        In deterministic mode the batches that the net sees are a function of `indices` alone, all of one size.
        """
        for first in range(indices.start, indices.stop, self.cfg.micro_batch):
            before_each(first - indices.start)
            ids = range(first, min(indices.stop, first + self.cfg.micro_batch))
            # A full batch at the end too: another batch size may select other kernels, which change the last bits.
            padding = self.cfg.micro_batch - len(ids) if self.cfg.deterministic else 0
            yield from self._micro_batch(ids, [ids[-1]] * padding)

    def _micro_batch(self, ids: range, padding: list[int]) -> Iterator[Sample]:
        image, logits = self.sample([*ids, *padding])
        # The one place where the host waits for the device: once a micro-batch, after all steps.
        grey, soft = to_grey(image)[:, 0].cpu().numpy(), logits.float().cpu().numpy()
        for index, sar, soft_label in zip(ids, grey, soft):
            yield Sample(sample_key(index), sar, soft_label=soft_label, meta={"index": index, **self.provenance})

    def sample(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The pairs of these indices in one batch, before they are stored.

        Returns the images (B, 1, H, W) in [-1, 1] and the labels' logits (B, K, H, W), both on the teacher's device.
        """
        x, y = start_noise(self.cfg.seed, indices, self.cfg.size, self.teacher.net.label_channels)
        return self._sampler(x, y, sample_ids=torch.tensor(indices), seed=self.cfg.seed)

    @property
    def device_name(self) -> str:
        device = self.teacher.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def provenance_of(
    cfg: GenerateConfig, *, checkpoint: str, b: float, precision: str, threads: int, temperature: float
) -> dict:
    """The facts that every sample of a set depends on, with a hash of them under "config".

    checkpoint: the hash of the teacher's file.  temperature: of the student's softened labels, for codecs that need it.
    """
    facts = {
        "seed": cfg.seed,
        "sampler": cfg.solver,
        "spacing": cfg.steps_spacing,
        "steps": cfg.sampling_steps,
        "eta": cfg.eta,
        "clip": CLIP,
        "b": b,
        "checkpoint": checkpoint,
        "weights": cfg.weights,
        "size": list(cfg.size),
        "shard_size": cfg.shard_size,
        "codec": cfg.codec,
        "precision": precision,
        "deterministic": cfg.deterministic,
    }
    if cfg.codec != "fp16":
        facts["temperature"] = temperature
    if cfg.deterministic:  # elsewhere they change a sample by no more than a rounding
        facts |= {"micro_batch": cfg.micro_batch, "threads": threads}
    return facts | {"config": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def refuse_settings_of_another_set(config: Config, may_grow: bool = True) -> None:
    """ValueError where the run's started set was made with other settings, or from another teacher than is there.

    may_grow: whether shards may be added, which must be computed alike. A set that is only read may have been made on
    another kind of device, or deterministically.
    """
    if (config.run_path / "generate" / "provenance.json").is_file():
        found = open_plan(config)
        wanted = plan_of_settings(config, found, may_grow)
        refuse_other_provenance(found.folder / "provenance.json", found.provenance, wanted)


def plan_of_settings(config: Config, found: GenerationPlan, may_grow: bool = True) -> GenerationPlan:
    """The plan of a started set as the settings and the teacher that is there have it, without the teacher's net.

    found: the plan by its provenance.json, which has the teacher's facts where there is no teacher.  may_grow: see
    `refuse_settings_of_another_set`.
    """
    cfg, teacher = config.generate.model_copy(update={"seed": config.generate_seed}), teacher_file_name(config)
    facts = read_metadata(teacher) if teacher.is_file() else {}
    name = cfg.precision  # not refused where this CPU would emulate it: nothing is computed here
    if name == "auto":
        name = _precision(name, distributed.device(), facts, found.provenance).name
    precision = _DTYPES[name]
    if not may_grow:
        own = {name: found.provenance.get(name, getattr(cfg, name)) for name in _COMPUTED_BY}
        cfg = cfg.model_copy(update=own)
        precision = found.provenance.get("precision", precision) if cfg.precision == "auto" else precision
    ours = provenance_of(
        cfg,
        checkpoint=file_hash(teacher) if teacher.is_file() else found.provenance.get("checkpoint", ""),
        b=facts.get("b", found.provenance.get("b", 0.0)),
        precision=precision,
        threads=cfg.threads or 1,
        temperature=config.soft_label_temperature,
    )
    return replace(found, shard_size=cfg.shard_size, provenance=ours)


def teacher_file_name(config: Config) -> Path:
    folder = config.run_path / "train_jointnet" / config.train_jointnet.stages[-1]
    return folder / f"weights_{config.generate.weights}.safetensors"


def teacher_file(config: Config) -> Path:
    """The weights that pairs are sampled from; ValueError where there are none yet."""
    path = teacher_file_name(config)
    if not path.exists():
        raise ValueError(f"no trained teacher at {path}; run train_jointnet first")
    return path


def teacher_classes(config: Config) -> ClassTable:
    """The class table of the teacher, without loading its net."""
    return ClassTable.from_dict(read_metadata(teacher_file(config))["classes"])


def _set_threads(cfg: GenerateConfig) -> None:
    # The way in which a sum is split among threads decides its last bits.
    distributed.limit_threads(cfg.threads or int(cfg.deterministic))


@contextmanager
def computed_deterministically(deterministic: bool) -> Iterator[None]:
    """If so, let torch use only algorithms whose results are the same in every run."""
    if not deterministic:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    backends, filling = torch.backends.cudnn, torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), backends.benchmark, filling.fill_uninitialized_memory
    # This does what use_deterministic_algorithms does, which would first import the compiler: seconds at each start.
    torch.set_deterministic_debug_mode("error")
    backends.benchmark = filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        backends.benchmark, filling.fill_uninitialized_memory = before[1:]


@contextmanager
def _computed_as(cfg: GenerateConfig) -> Iterator[None]:
    """Use the threads and algorithms of the settings; restore the process's own afterwards."""
    threads = torch.get_num_threads()
    try:
        with computed_deterministically(cfg.deterministic):
            if cfg.threads or cfg.deterministic:
                _set_threads(cfg)
            yield
    finally:
        torch.set_num_threads(threads)


def _refuse_unknown(precision: str) -> None:
    if precision not in ("auto", *_DTYPES):
        raise ValueError(f"precision is {precision!r}; expected auto, fp32 or bf16")


def _precision(setting: str, device: torch.device, facts: dict, begun: dict | None = None) -> Precision:
    """facts: metadata of the teacher's file, empty where there is none.  begun: the provenance of a set to add to."""
    pays = "unet" in facts and pays_in_unet(facts["unet"]["channels"])
    given = setting, "generate.precision", "bf16", device, pays
    names = {dtype: name for name, dtype in _DTYPES.items()}
    before = names.get((begun or {}).get("precision", ""))
    return choose(*given) if before is None else keep(before, *given)
