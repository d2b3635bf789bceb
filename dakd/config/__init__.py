"""One experiment is one YAML with a section per step; these modules type every setting: default, unit, meaning.

`load_config(path, overrides)` reads a YAML (strictly: an unknown key is an error that names the nearest known one),
expands `${VARIABLES}` from the environment, applies dotted overrides (`train_jointnet.stage1.steps=100`) and returns a
validated `Config`. Defaults are the values of the paper (arXiv 2412.08116) where it states them; where it is silent the
meaning of a setting says `inferred`.
"""

from __future__ import annotations

from dakd.config.base import Byte, Fraction, NonNegative, Positive, Scale, Section, Size, wanted
from dakd.config.evaluate import EvaluateConfig, FidelityConfig, PredictConfig
from dakd.config.experiment import Config
from dakd.config.generate import AuditConfig, Bounds, GateConfig, GenerateConfig, ShareBounds
from dakd.config.prepare import PrepareConfig, SceneSide, SimulationConfig
from dakd.config.reading import build_config, dump_config, load_config
from dakd.config.student import (
    STUDENT_KINDS,
    SamOilConfig,
    SkipModule,
    StudentConfig,
    StudentLossConfig,
    StudentOptimizerConfig,
    TrainingSet,
    TrainSarossConfig,
)
from dakd.config.teacher import (
    BalanceConfig,
    ScheduleConfig,
    Stage1Config,
    StageConfig,
    TeacherEngineConfig,
    TrainJointNetConfig,
    UNetConfig,
)
from dakd.config.training import DataConfig, EngineConfig, OptimizerConfig
from dakd.config.validation import validated

__all__ = [
    "STUDENT_KINDS",
    "AuditConfig",
    "BalanceConfig",
    "Bounds",
    "Byte",
    "Config",
    "DataConfig",
    "EngineConfig",
    "EvaluateConfig",
    "FidelityConfig",
    "Fraction",
    "GateConfig",
    "GenerateConfig",
    "NonNegative",
    "OptimizerConfig",
    "Positive",
    "PredictConfig",
    "PrepareConfig",
    "SamOilConfig",
    "Scale",
    "SceneSide",
    "ScheduleConfig",
    "Section",
    "ShareBounds",
    "SimulationConfig",
    "Size",
    "SkipModule",
    "Stage1Config",
    "StageConfig",
    "StudentConfig",
    "StudentLossConfig",
    "StudentOptimizerConfig",
    "TeacherEngineConfig",
    "TrainJointNetConfig",
    "TrainSarossConfig",
    "TrainingSet",
    "UNetConfig",
    "build_config",
    "dump_config",
    "load_config",
    "validated",
    "wanted",
]
