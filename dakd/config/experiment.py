"""One experiment: a section per step."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from dakd.config.base import NonNegative, Section, WrittenPath
from dakd.config.evaluate import EvaluateConfig, PredictConfig
from dakd.config.generate import GenerateConfig
from dakd.config.prepare import PrepareConfig
from dakd.config.pseudo_label import PseudoLabelConfig
from dakd.config.refine import RefineConfig
from dakd.config.student import TrainSarossConfig
from dakd.config.teacher import BalanceConfig, TrainJointNetConfig
from dakd.config.training import DataConfig
from dakd.names import FILE_PART, is_file_part
from dakd.sampling import check_num_steps


class Config(Section):
    """The whole experiment, in pipeline order."""

    name: str = Field(min_length=1)
    """Name of the experiment."""

    run_dir: WrittenPath | None = None
    """Folder of the run. null takes runs/NAME."""

    seed: NonNegative = 0
    """Seed of all randomness: initial weights, order of samples and noise of the trainings, bootstraps, and, where they
    have no seed of their own, the simulated scenes and the generated pairs."""

    prepare: PrepareConfig = PrepareConfig()

    balance: BalanceConfig = BalanceConfig()

    data: DataConfig = DataConfig()

    train_jointnet: TrainJointNetConfig = TrainJointNetConfig()

    generate: GenerateConfig = GenerateConfig()

    refine: RefineConfig = RefineConfig()

    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()

    train_saross: TrainSarossConfig = TrainSarossConfig()

    evaluate: EvaluateConfig = EvaluateConfig()

    predict: PredictConfig = PredictConfig()

    @field_validator("name", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        """A number has lost how it was typed: 007 would be 7."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f'expected text, found a number; give it in quotes: "{value}"')
        return value

    @field_validator("name")
    @classmethod
    def _is_a_folder(cls, name: str) -> str:
        """It is the run's folder in runs/."""
        if not is_file_part(name):
            raise ValueError(f"expected a folder's name: {FILE_PART}; set run_dir for a run in another place")
        return name

    @model_validator(mode="after")
    def _has_a_timestep_for_each_step(self) -> Config:
        timesteps = self.train_jointnet.schedule.num_train_timesteps
        check_num_steps(self.generate.sampling_steps, timesteps, "generate.sampling_steps")
        check_num_steps(self.train_jointnet.engine.sample_steps, timesteps, "train_jointnet.engine.sample_steps")
        return self

    @model_validator(mode="after")
    def _knows_the_steps_of_a_student_that_comes_first(self) -> Config:
        """Epochs are counted over the pairs, which are not there yet where a student of real images helps make them."""
        cfg = self.train_saross
        counts_pairs = any("synthetic" in name for name in cfg.epoch_sets)
        is_first = self.refine.is_set or (self.generate.gate.asks_own_student and cfg.synthetic is None)
        if counts_pairs and is_first:
            asked_by = "generate.gate.student"
            if self.refine.is_set:
                asked_by = "refine.repeats" if self.refine.pixel_gate is None else "refine.pixel_gate"
            raise ValueError(
                f"{asked_by} needs the student of the set real before there are pairs, over which its "
                f"train_saross.epochs ({cfg.epochs}) are counted; set train_saross.steps"
            )
        return self

    @property
    def real_student(self) -> Path:
        """The weights file of the run's own student of real images."""
        return self.run_path / "train_saross" / "real" / "student.safetensors"

    @property
    def unrefined_pairs(self) -> str | Path:
        """Folder or URL of the pairs before `refine`."""
        return self.train_saross.synthetic or self.run_path / "generate"

    @property
    def pairs(self) -> str | Path:
        """Folder or URL of the pairs that students are trained on."""
        return self.run_path / "refine" if self.refine.is_set else self.unrefined_pairs

    @property
    def soft_label_temperature(self) -> float:
        """What generated soft labels are written for."""
        return self.generate.temperature or self.train_saross.loss.temperature

    @property
    def generate_seed(self) -> int:
        return self.seed if self.generate.seed is None else self.generate.seed

    @property
    def run_path(self) -> Path:
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name
