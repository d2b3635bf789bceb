"""The independent implementation that the metrics are held against."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from dakd.models.encoders import import_torchvision


@pytest.fixture(scope="session")
def torchmetrics() -> ModuleType:
    """torchmetrics imports torchvision where it is installed, and that may need help on a CPU-only torch."""
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()
    import torchmetrics
    import torchmetrics.functional.classification
    import torchmetrics.segmentation

    return torchmetrics
