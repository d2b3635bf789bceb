"""dakd: joint diffusion of SAR images and labels, and knowledge distillation, for oil spill segmentation.

    student = dakd.load_student("student.safetensors")            # predicts images of any size
    teacher = dakd.load_teacher("weights_ema.safetensors")        # samples pairs of image and soft label
    dakd.write_shards("out/", teacher.sample(8), teacher.classes) # shards for training
    shards = dakd.ShardSet("out/")                                # reads shards like a list
    net = dakd.create_student("deeplabv3plus", num_classes=5)     # a new net by its name
    y = dakd.kernels.selective_scan(u, delta, A, B, C)            # an operation for your own nets

Importing dakd imports nothing else. Each name is loaded, and torch with it, when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dakd import kernels
    from dakd.api import (
        ClassTable,
        Prediction,
        Sample,
        ShardSet,
        Student,
        Teacher,
        create_joint_net,
        create_student,
        load_student,
        load_teacher,
        write_shards,
    )

__version__ = "0.1.0"
__all__ = [
    "ClassTable",
    "Prediction",
    "Sample",
    "ShardSet",
    "Student",
    "Teacher",
    "__version__",
    "create_joint_net",
    "create_student",
    "kernels",
    "load_student",
    "load_teacher",
    "write_shards",
]


if not TYPE_CHECKING:  # type checkers see the imports above and report a wrong name

    def __getattr__(name: str) -> Any:
        if name == "kernels":
            return importlib.import_module("dakd.kernels")
        if name not in __all__:
            raise AttributeError(f"module 'dakd' has no attribute {name!r}; it has {', '.join(__all__)}")
        value = getattr(importlib.import_module("dakd.api"), name)
        globals()[name] = value  # so that the next use needs no look-up
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
