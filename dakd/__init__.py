"""dakd: joint diffusion of SAR images and labels, generation at scale, and distillation for oil spill segmentation.

    student = dakd.load_student("student.safetensors")            # predict images of any size
    teacher = dakd.load_teacher("weights_ema.safetensors")        # sample pairs of image and soft label
    dakd.write_shards("out/", teacher.sample(8), teacher.classes) # shards that trainings read
    shards = dakd.ShardSet("out/")                                # and that you read as a list
    net = dakd.create_student("deeplabv3plus", num_classes=5)     # nets by name and plain numbers
    y = dakd.kernels.selective_scan(u, delta, A, B, C)            # ops for your own nets

Importing dakd imports nothing else: a name's module, and torch with it, comes when the name is first used.
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


if not TYPE_CHECKING:  # where names are looked up as they stand above, and a wrong one is an error

    def __getattr__(name: str) -> Any:
        if name == "kernels":
            return importlib.import_module("dakd.kernels")
        if name not in __all__:
            raise AttributeError(f"module 'dakd' has no attribute {name!r}; it has {', '.join(__all__)}")
        value = getattr(importlib.import_module("dakd.api"), name)
        globals()[name] = value  # asked once
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
