"""Where an experiment runs: its folder, the launcher, packages, and the backends of the device."""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import partial

import torch

from dakd.check.capacity import nearest_folder
from dakd.check.experiment import Experiment
from dakd.check.findings import Found, as_level
from dakd.evaluate.extractors import import_torch_fidelity
from dakd.kernels import backend
from dakd.runtime import distributed, precision
from dakd.runtime.place import hint_about_slurm, refuse_launcher, refuse_mpi
from dakd.runtime.runlog import refuse_wandb
from dakd.shipped import extra_remedy


def run_folder(experiment: Experiment) -> Found:
    place = nearest_folder(experiment.run)
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{experiment.run} cannot be written ({place} is read-only for this user); set run_dir")
    yield "ok", f"{experiment.run} {'is there' if experiment.run.is_dir() else 'will be made'}"


def launcher(experiment: Experiment) -> Found:
    """Variables of another launcher: a training would wait for its ranks."""
    refuse_mpi()
    refuse_launcher("pipeline")
    yield from (("warn", hint) for hint in [hint_about_slurm()] if hint)


def packages(experiment: Experiment) -> Found:
    config, needed = experiment.config, {"deepspeed": "train"}
    for section in (config.train_jointnet, config.train_saross):
        if section.engine.wandb in ("online", "offline"):
            needed["wandb"] = "train"
    if config.predict.scenes:
        needed |= dict.fromkeys(("rasterio", "shapely", "pyproj", "pyogrio", "scipy"), "geo")
    missing = {name: extra for name, extra in needed.items() if importlib.util.find_spec(name) is None}
    for name, extra in missing.items():
        yield "refused", f"{name} is not installed; run: {extra_remedy(extra)}"
    if config.evaluate.fidelity.extractor != "none":
        import_torch_fidelity()
    codecs = {config.generate.codec, config.pseudo_label.codec}
    if "logprob8" in codecs and importlib.util.find_spec("zstandard") is None:
        yield "refused", "codec logprob8 needs zstandard, which is not installed; pip install zstandard"
    if "wandb" not in missing:
        for mode in sorted({section.engine.wandb for section in (config.train_jointnet, config.train_saross)}):
            refuse_wandb(mode)
    if not missing:
        yield "ok", ", ".join(needed)
    yield from _compilers(experiment)


def _compilers(experiment: Experiment) -> Found:
    """torch.compile calls them at the first step."""
    variable, name = ("CC", "gcc") if distributed.device().type == "cuda" else ("CXX", "g++")
    compiler = os.environ.get(variable) or name
    for step in ("train_jointnet", "train_saross"):
        if getattr(experiment.config, step).engine.compile and shutil.which(compiler) is None:
            yield "refused", f"{step}.engine.compile is true, and there is no {compiler}; install it, or set false"


def backends(experiment: Experiment) -> Found:
    kind = distributed.device().type
    choices = backend.report(kind, experiment.num_classes)
    named = sorted({choice.chosen for choice in choices})
    yield "ok", f"operations run on {kind} with {', '.join(named)}"
    if experiment.config.generate.capture is True and kind != "cuda":
        yield "refused", "generate.capture is true, which needs a GPU; set it to auto or false"
    yield from _slow(experiment)
    yield from _emulated(experiment)
    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield "warn", "this GPU has no bf16, which precision auto takes; set precision to fp32"
    num_gpus = torch.cuda.device_count()
    if num_gpus > experiment.processes:
        yield "warn", f"{experiment.processes} of {num_gpus} GPUs are used: they must share both global batches evenly"


def _slow(experiment: Experiment) -> Found:
    """What runs, but several times slower than need be."""
    config, ranks = experiment.config, experiment.processes
    processes = {"train_jointnet": ranks, "train_saross": ranks * config.train_saross.side_by_side(ranks)}
    for step, count in processes.items():
        readers, cores = getattr(config, step).engine.num_workers * count, distributed.num_cores()
        if readers > cores:
            yield "warn", f"{step}.engine.num_workers makes {readers} reader processes for {cores} cores; lower it"


def _emulated(experiment: Experiment) -> Found:
    """Precisions that this CPU would emulate."""
    config = experiment.config
    settings = {f"{step}.engine.precision": getattr(config, step).engine.precision
                for step in ("train_jointnet", "train_saross")}  # fmt: skip
    settings["generate.precision"] = config.generate.precision
    for key, setting in settings.items():
        yield from as_level("refused", partial(precision.refuse_emulated, setting, key, distributed.device()))
