"""`--dry-run`: the resolved settings, parameters, FLOPs an image and a memory estimate, without training anything.

Settings that a training would refuse are refused here too; the data are not read. The nets are built on torch's
meta device, so even the largest allocate nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dakd.config import (
    STUDENT_KINDS,
    Config,
    TrainJointNetConfig,
    TrainSarossConfig,
    dump_config,
)
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES, ClassTable
from dakd.diffusion.label_bits import num_bits
from dakd.models.jointnet import SARJointNet
from dakd.models.registry import build_student
from dakd.runtime.distributed import device, world_size
from dakd.runtime.precision import choose, pays_in_student, pays_in_unet
from dakd.runtime.runlog import format_count
from dakd.runtime.tensor_files import load_state, refuse_misfit
from dakd.train.jointnet import freeze_for_stage
from dakd.train.optim import decays_of
from dakd.train.saross import StudentTraining
from dakd.train.student_checks import check_loss, check_statistics
from dakd.train.teacher import TeacherTraining, net_of
from dakd.train.training import Training
from dakd.train.zero import fitting_micro_batch, zero_config
from dakd.weights import refuse_other_student

# The part that a count on the meta device leaves out, by the student's name.
UNCOUNTED = {
    "saross": " (without the scans and the attention cores)",
    "sam_oil": " (without what follows the detections: heads and masks)",
}


@dataclass(frozen=True)
class Cost:
    """Of one net on one image: parameters, multiply-adds of a forward pass, bytes kept for the backward pass."""

    num_parameters: int
    num_trained: int
    macs: float
    saved_bytes: int


def describe_jointnet(config: Config) -> str:
    """What `train_jointnet --dry-run` prints; ValueError where the processes cannot share the global batch."""
    cfg = config.train_jointnet
    micro_batch = fitting_micro_batch(cfg.global_batch, cfg.micro_batch, world_size())
    num_classes = num_classes_of(config)
    title = "DDPM" if cfg.generator == "ddpm" else "SAR-JointNet"
    lines = [dump_config(config), f"{title}, {num_classes} classes, crop {cfg.crop[0]} x {cfg.crop[1]}"]
    for stage in cfg.stages:
        cost = cost_of_stage(stage, cfg, num_classes)
        lines.append(f"{stage.replace('stage', 'stage ')}   {_cost_line(cost)}")
        lines += _memory_lines(cost, cfg, micro_batch, TeacherTraining)
    return "\n".join(lines)


def cost_of_stage(stage: str, cfg: TrainJointNetConfig, num_classes: int) -> Cost:
    """Of a stage's net at the training crop; ValueError for settings of which no net can be built."""
    label_channels = num_bits(num_classes) if stage == "ddpm" else num_classes
    with torch.device("meta"):
        image, label = torch.empty(1, 1, *cfg.crop), torch.empty(1, label_channels, *cfg.crop)
        t = torch.zeros(1, dtype=torch.int64)
        net = net_of(stage, cfg, num_classes)
    if isinstance(net, SARJointNet):
        freeze_for_stage(net, int(stage[-1]))
    return measure(net, (image, t) if stage == "stage1" else (image, label, t))


def describe_saross(config: Config) -> str:
    """What `train_saross --dry-run` prints; ValueError for settings that training refuses."""
    cfg, num_classes = config.train_saross, num_classes_of(config)
    micro_batch = fitting_micro_batch(cfg.global_batch, cfg.micro_batch, world_size())
    check_loss(cfg, num_classes, any(name != "real" for name in cfg.training_sets))
    check_statistics(cfg, num_classes)
    cost = cost_of_student(cfg, num_classes)
    uncounted = UNCOUNTED.get(cfg.student.name, "")
    lines = [
        dump_config(config),
        f"{STUDENT_KINDS[cfg.student.name].title}, {cfg.student.encoder}, crop {cfg.crop[0]} x {cfg.crop[1]}",
        f"student   {_cost_line(cost)}{uncounted}",
        *_memory_lines(cost, cfg, micro_batch, StudentTraining),
    ]
    return "\n".join(lines)


def cost_of_student(cfg: TrainSarossConfig, num_classes: int) -> Cost:
    """Of the student at the training crop; ValueError or RuntimeError where none can be built."""
    with torch.device("meta"):
        net = build_student(cfg.student, num_classes)
        image = torch.empty(1, 3, *cfg.crop)
    return measure(net.eval(), (image,))


def check_pretrained(cfg: TrainSarossConfig, num_classes: int) -> None:
    """Fill a student on the meta device from `student.pretrained`: the file is read, and refused as in a training."""
    with torch.device("meta"):
        net = build_student(cfg.student, num_classes)
    with warnings.catch_warnings(action="ignore"):  # torch: nothing is copied to that device
        net.load_pretrained(cfg.student.pretrained)


def check_init_from(cfg: TrainSarossConfig, classes: ClassTable) -> None:
    """Read the weights of `init_from`, which are refused as in a training."""
    refuse_other_student(cfg.init_from, cfg.student, classes)
    with torch.device("meta"):
        net = build_student(cfg.student, classes.num_classes)
    refuse_misfit(net, load_state(cfg.init_from), cfg.init_from)


def num_classes_of(config: Config) -> int:
    """Known from the config, before anything is prepared."""
    prepare = config.prepare
    if prepare.dataset == "folder":
        return len(prepare.classes)
    return (SOS_CLASSES if prepare.dataset == "sos" else OSD_CLASSES).num_classes


def measure(net: nn.Module, inputs: tuple[Tensor, ...]) -> Cost:
    """Run a meta-device net once, counting."""
    saved: dict[int, int] = {}
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = net(*inputs)
    del outputs
    return Cost(
        sum(parameter.numel() for parameter in net.parameters()),
        sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad),
        counter.get_total_flops() / 2,
        sum(saved.values()),
    )


def _cost_line(cost: Cost) -> str:
    return (
        f"{cost.num_parameters / 1e6:.2f} M parameters, {cost.num_trained / 1e6:.2f} M trained; "
        f"{cost.macs / 1e9:.2f} GMAC ({format_count(2 * cost.macs)}FLOP) an image and forward pass"
    )


def memory_parts(
    cost: Cost, precision: str, stage: int, world: int, micro_batch: int, num_averages: int = 1
) -> dict[str, float]:
    """Bytes per rank, by purpose: ZeRO `stage` (1 to 3) among `world` ranks.

    The optimizer keeps an fp32 master, two moments and the averages of every trained parameter; bf16 and autocast keep
    half of the fp32 activations.
    """
    width = 2 if precision == "bf16" else 4
    activations = cost.saved_bytes * micro_batch
    return {
        "weights": cost.num_parameters * width / (world if stage == 3 else 1),
        "gradients": cost.num_trained * width / (world if stage >= 2 else 1),
        "optimizer": cost.num_trained * 4 * (3 + num_averages) / world,
        f"activations of {micro_batch} images": activations if precision == "fp32" else activations / 2,
    }


def precision_of(cost: Cost, cfg: TrainJointNetConfig | TrainSarossConfig, training: type[Training]) -> str:
    """The precision of a new training on this host; ValueError for bf16 on a CPU that would emulate it."""
    is_teacher = isinstance(cfg, TrainJointNetConfig)
    pays = pays_in_unet(cfg.unet.channels) if is_teacher else pays_in_student(cost.num_parameters)
    key = f"{training.key}.engine.precision"
    return choose(cfg.engine.precision, key, training.low_precision, device(), pays).name


def _memory_lines(
    cost: Cost, cfg: TrainJointNetConfig | TrainSarossConfig, micro_batch: int, training: type[Training]
) -> list[str]:
    """One line a precision: that of this host, and that of a GPU where `auto` means another there."""
    stage, world = zero_config(cfg.engine.deepspeed)["zero_optimization"]["stage"], world_size()
    here, on_gpu = precision_of(cost, cfg, training), training.low_precision
    precisions = {here: here} | ({on_gpu: f"{on_gpu}, as on a GPU"} if cfg.engine.precision == "auto" else {})
    lines = []
    for precision, title in precisions.items():
        parts = memory_parts(cost, precision, stage, world, micro_batch, len(decays_of(cfg.optimizer)))
        listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        total = sum(parts.values()) / 2**30
        lines.append(f"          {title}: about {total:.2f} GiB a rank ({listed}; ZeRO-{stage} on {world})")
    return lines
