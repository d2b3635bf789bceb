"""Set-up before any import of triton, whose kernels run in the interpreter without a GPU; signals as in a terminal."""

import os

import pytest
import torch
from hang_up import heed_signals

heed_signals()
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_runtest_setup():
    # Also where the test before took all cores.
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # threads of two workers spin at their barriers and slow one another several times


@pytest.fixture
def cpu_with_amx(monkeypatch):
    """For tests of bf16 that is asked for: a CPU without it would refuse, and is merely slow with toy nets."""
    monkeypatch.setattr("dakd.runtime.precision.cpu_bf16", lambda: "AMX")


@pytest.fixture
def cpu_without_bf16(monkeypatch):
    monkeypatch.setattr("dakd.runtime.precision.cpu_bf16", lambda: "")
