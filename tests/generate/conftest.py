"""One small deterministic set, made once; tests copy it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from worlds import with_teacher

from dakd.config import Config
from dakd.generate.generate import generate
from dakd.runtime import distributed


@pytest.fixture
def on_the_cpu(monkeypatch) -> None:
    """Processes that are forked here could not use a GPU."""
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cpu"))


@pytest.fixture(scope="session")
def whole_set(tmp_path_factory) -> Path:
    """The run folder of an undisturbed worker's set of 11 pairs in 4 shards of 3."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "device", lambda: torch.device("cpu"))
        generate(small_set(run))
    return run


@pytest.fixture
def copy_of_set(whole_set, tmp_path, on_the_cpu) -> tuple[Config, Path]:
    """The configuration and folder of a copy of that set, to be damaged."""
    config = small_set(tmp_path / "run")
    shutil.copytree(whole_set / "generate", tmp_path / "run" / "generate")
    return config, tmp_path / "run" / "generate"


@pytest.fixture
def new_set(on_the_cpu) -> Callable[..., Config]:
    return small_set


def small_set(run: Path, **settings: object) -> Config:
    return with_teacher(run, **({"num_samples": 11, "deterministic": True} | settings))
