"""All settings of an experiment, with type, default, unit and meaning; one module for each step of the pipeline.

An experiment is one YAML file with a section per step. `load_config(path, overrides)` reads it, applies dotted
overrides (`train_jointnet.stage1.steps=100`), expands `${VARIABLES}` of the environment and returns a validated
`Config`. An unknown key is an error that names the nearest known one. Defaults are the paper's values (arXiv
2412.08116); where the paper states none, the meaning of the setting says `inferred`.
"""

from __future__ import annotations

from dakd.config.base import (
    Byte,
    Fraction,
    NonNegative,
    Positive,
    Scale,
    Section,
    Size,
    expected,
)
from dakd.config.evaluate import EvaluateConfig, FidelityConfig, PredictConfig
from dakd.config.experiment import Config
from dakd.config.generate import AuditConfig, Bounds, GateConfig, GenerateConfig, ShareBounds
from dakd.config.prepare import PrepareConfig, RadiometryConfig, SceneSide, SimulationConfig
from dakd.config.pseudo_label import PseudoLabelConfig
from dakd.config.reading import build_config, dump_config, load_config
from dakd.config.refine import RefineConfig
from dakd.config.student import (
    STUDENT_KINDS,
    SamOilConfig,
    SkipModule,
    StudentConfig,
    StudentLossConfig,
    StudentOptimizerConfig,
    TrainingSet,
    TrainSarossConfig,
    ValidationConfig,
    check_mix,
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
from dakd.config.validation import Written, plain_fault, validated
from dakd.config.yaml_text import parse_yaml, read_yaml, yaml_problem

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
    "PseudoLabelConfig",
    "RadiometryConfig",
    "RefineConfig",
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
    "ValidationConfig",
    "Written",
    "build_config",
    "check_mix",
    "dump_config",
    "expected",
    "load_config",
    "parse_yaml",
    "plain_fault",
    "read_yaml",
    "validated",
    "yaml_problem",
]
