"""The settings of `prepare`: the dataset, and its shards."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dakd.config.base import Byte, Fraction, NonNegative, Positive, Section, Size

SceneSide = Annotated[int, Field(ge=8)]  # pixels; a smaller scene shows nothing


class SimulationConfig(Section):
    """The simulated dataset: SAR scenes under multiplicative speckle, five classes in OSD's ids and colours.

    The shares are means over the pixels that the scenes aim at; sea is what remains (OSD: sea 88.30, oil 1.01,
    look-alike 5.59, ship 0.04, land 5.06 %).
    """

    num_train: Positive = 600
    """Number of training scenes."""

    num_test: Positive = 120
    """Number of test scenes."""

    seed: NonNegative | None = None
    """Seed of the scenes. null takes the seed of the experiment."""

    size: tuple[SceneSide, SceneSide] = (64, 64)
    """Height and width of a scene in pixels."""

    looks: Annotated[float, Field(gt=0)] = 6.0
    """Equivalent number of looks of the gamma speckle; more looks make less speckle."""

    oil_share: Fraction = 0.0101
    """Mean share of the pixels that are oil."""

    look_alike_share: Fraction = 0.0559
    """Mean share of the pixels that are look-alikes."""

    ship_share: Fraction = 0.0004
    """Mean share of the pixels that are ships."""

    land_share: Fraction = 0.0506
    """Mean share of the pixels that are land."""


class RadiometryConfig(Section):
    """What the grey values of the images mean. Students store it, and `dakd scene` brings scenes to the same greys."""

    quantity: Literal["sigma0", "gamma0", "beta0", "amplitude"] | None = None
    """Quantity that the greys show: backscatter, or uncalibrated amplitude. null: unknown; sigma0 where simulated."""

    window_db: tuple[float, float] | None = None
    """dB that grey 0 and grey 255 stand for, between which greys are linear in dB. null: unknown; the simulator's own.
    """

    pixel_spacing_m: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    """Metres between pixels, as prepared (after `resize`). null: unknown; 40 where simulated."""

    @model_validator(mode="after")
    def _window_rises(self) -> RadiometryConfig:
        if self.window_db is not None and not self.window_db[0] < self.window_db[1]:
            raise ValueError(f"window_db is {list(self.window_db)}; expected the lower one first: change their order")
        return self


class PrepareConfig(Section):
    """The dataset, and how it is packed into shards."""

    kind_key: ClassVar[str] = "dataset"

    dataset: Literal["simulated", "osd", "sos", "folder"] = "simulated"
    """Kind of dataset: scenes simulated by dakd, the folder layout of OSD or SOS, or any folder of images and masks."""

    root: str | None = None
    """Folder of the dataset. Required unless the dataset is "simulated", which does not use it."""

    sensor: Literal["palsar", "sentinel"] | None = None
    """Sensor of SOS whose images are read. Required for "sos", unused by the others."""

    polarity: Literal["oil_is_white", "oil_is_black"] = "oil_is_white"
    """Colour of oil in the masks of SOS; checked against the images. Unused by the other datasets."""

    mask_threshold: Annotated[int, Field(ge=1, le=255)] = 128
    """Grey value from which a mask pixel of SOS counts as white. Unused by the other datasets."""

    classes: dict[str, tuple[Byte, Byte, Byte]] | None = None
    """Class names and their RGB colours, in the order of the class ids; masks hold ids or these colours. Required for
    "folder", unused by the others."""

    mask_values: Literal["auto", "ids", "colours", "palette", "binary"] = "auto"
    """Meaning of the values of masks, decided once per split. "auto" takes the class colours where all masks hold them,
    else ids (255: unknown), and stops where both or neither is certain. "ids": the stored numbers; the bits of a 1-bit
    picture are 0 and 1. "colours": what the pixels show, by the palette if there is one. "palette": palette pictures by
    colour, others by id. "binary": two classes; black is 0, white is 255 or 1. In SOS, "ids" takes 0 and 1, "auto" too
    where all masks hold them, and all others the threshold.
    """

    resize: Size | None = None
    """Size that every image is brought to: images by area average, labels by nearest neighbour. null keeps the sizes.
    """

    max_samples: Positive | None = None
    """Largest number of samples per split. null takes all."""

    num_labelled: Positive | None = None
    """Number of training images that keep their labels, as if no more had been labelled; the others serve as images
    alone: in stage 1 of the teacher, and for pseudo labels. The choice holds the combinations of classes in their
    shares, and with one `subset_seed` fewer labels are always among more. null keeps all labels. The test split stays
    whole."""

    subset_seed: NonNegative | None = None
    """Seed of the choice of `num_labelled` images. null takes the seed of the experiment."""

    labelled: str | None = None
    """A text file that names the training images whose labels are used, one key or file name a line, in place of
    `num_labelled`. No other mask of the training split is opened. `prepare` writes its own choice in this form,
    RUN/prepare/labelled.txt."""

    on_missing_mask: Literal["stop", "image_only"] = "stop"
    """What to do about training images without a mask where others have one: "stop" ends with an error, "image_only"
    takes them for stage 1 of the teacher and for pseudo labels. In the test split they are always an error."""

    shard_size: Positive = 256
    """Samples per shard."""

    on_bad_file: Literal["stop", "skip"] = "stop"
    """What to do about a file that cannot be read: "stop" ends with an error, "skip" leaves the sample out."""

    simulation: SimulationConfig = SimulationConfig()

    radiometry: RadiometryConfig = RadiometryConfig()

    @model_validator(mode="after")
    def _dataset_has_what_it_needs(self) -> PrepareConfig:
        if self.dataset != "simulated" and not self.root:
            raise ValueError(f"dataset {self.dataset!r} has no root; set prepare.root to its folder")
        if self.dataset == "sos" and self.sensor is None:
            raise ValueError("dataset 'sos' has no sensor; set prepare.sensor to palsar or sentinel")
        if self.dataset == "folder" and not self.classes:
            raise ValueError("dataset 'folder' has no classes; set prepare.classes to {name: [r, g, b], ...}")
        return self

    @model_validator(mode="after")
    def _chooses_labels_once(self) -> PrepareConfig:
        if self.num_labelled is not None and self.labelled is not None:
            raise ValueError(
                f"num_labelled ({self.num_labelled}) and labelled ({self.labelled}) both choose the labelled images; "
                "set one of them to null"
            )
        return self

    @property
    def may_leave_unlabelled(self) -> bool:
        """Whether training images may be left without a label."""
        chooses = self.num_labelled is not None or self.labelled is not None
        return chooses or self.on_missing_mask == "image_only"
