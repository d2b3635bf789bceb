"""The settings of `prepare`: the dataset, and its shards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dakd.config.base import Byte, Fraction, NonNegative, Positive, Section, Size

SceneSide = Annotated[int, Field(ge=8)]  # pixels; a smaller scene shows nothing


class SimulationConfig(Section):
    """The embedded dataset: SAR scenes under multiplicative speckle, five classes in OSD's ids and colours."""

    num_train: Positive = 600
    num_test: Positive = 120
    seed: NonNegative | None = None  # of the scenes; None: the experiment's
    size: tuple[SceneSide, SceneSide] = (64, 64)
    looks: Annotated[float, Field(gt=0)] = 6.0  # equivalent number of looks of the gamma speckle
    # Mean pixel shares that the scenes aim at; sea is what remains (OSD: 88.30 / 1.01 / 5.59 / 0.04 / 5.06 %).
    oil_share: Fraction = 0.0101
    look_alike_share: Fraction = 0.0559
    ship_share: Fraction = 0.0004
    land_share: Fraction = 0.0506
    # A slick damps the sea's backscatter by this many dB, a look-alike by fewer (ranges, drawn per object).
    oil_damping_db: tuple[float, float] = (6.0, 11.0)
    look_alike_damping_db: tuple[float, float] = (2.0, 4.5)


class PrepareConfig(Section):
    """Which dataset, and how it is packed into shards."""

    dataset: Literal["simulated", "osd", "sos", "folder"] = "simulated"
    root: str | None = None  # folder of the dataset; unused by "simulated"
    sensor: Literal["palsar", "sentinel"] | None = None  # sos only
    polarity: Literal["oil_is_white", "oil_is_black"] = "oil_is_white"  # sos only; checked against the images
    mask_threshold: Annotated[int, Field(ge=1, le=255)] = 128  # sos: grey values at or above it are white
    # folder only: class names and colours in the order of the ids; masks hold ids or these colours.
    classes: dict[str, tuple[Byte, Byte, Byte]] | None = None
    resize: Size | None = None  # every image is brought to this size (area average; labels by nearest neighbour)
    max_samples: Positive | None = None  # per split; None takes all
    shard_size: Positive = 256  # samples a shard
    on_bad_file: Literal["stop", "skip"] = "stop"
    simulation: SimulationConfig = SimulationConfig()

    @model_validator(mode="after")
    def _dataset_has_what_it_needs(self) -> PrepareConfig:
        if self.dataset != "simulated" and not self.root:
            raise ValueError(f"dataset {self.dataset!r} has no root; set prepare.root to its folder")
        if self.dataset == "sos" and self.sensor is None:
            raise ValueError("dataset 'sos' has no sensor; set prepare.sensor to palsar or sentinel")
        if self.dataset == "folder" and not self.classes:
            raise ValueError("dataset 'folder' has no classes; set prepare.classes to {name: [r, g, b], ...}")
        return self
