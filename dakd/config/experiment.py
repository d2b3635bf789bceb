"""One experiment: a section per step."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from dakd.config.base import NonNegative, Section, WrittenPath
from dakd.config.evaluate import EvaluateConfig, PredictConfig
from dakd.config.generate import GenerateConfig
from dakd.config.prepare import PrepareConfig
from dakd.config.pseudo_label import PseudoLabelConfig
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
