"""Students by name: `build_student` turns the section `train_saross.student` into a net with fresh weights.

Their names, titles and default encoders are in dakd/config/student.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dakd.models.rivals.cbdnet import CBDNet
from dakd.models.rivals.deeplabv2 import DeepLabV2
from dakd.models.rivals.sam_oil.net import SamOil
from dakd.models.rivals.smp_nets import SMP_CLASSES, SmpStudent
from dakd.models.saross import SAROSSNet
from dakd.models.student import StudentNet
from dakd.runtime.whole import whole_number

if TYPE_CHECKING:
    from dakd.config import StudentConfig

STUDENT_CLASSES: dict[str, type[StudentNet]] = {
    "saross": SAROSSNet,
    **dict.fromkeys(SMP_CLASSES, SmpStudent),
    "deeplabv2": DeepLabV2,
    "cbdnet": CBDNet,
    "sam_oil": SamOil,
}


def build_student(cfg: StudentConfig, num_classes: int) -> StudentNet:
    """The student that `cfg` describes, randomly initialised: image (B, 3, H, W) -> logits (B, num_classes, H, W).

    A pretrained encoder is loaded afterwards, by the net's `load_pretrained`.
    ValueError for an unknown encoder or option, or fewer than two classes; RuntimeError where a package that it needs
    is not installed.
    """
    net = STUDENT_CLASSES[cfg.name].from_config(cfg, whole_number(num_classes, "num_classes", 2))
    net.student_config = cfg
    return net
