"""The settings of `evaluate` and `predict`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dakd.config.base import Fraction, NonNegative, Positive, Scale, Section
from dakd.config.student import TrainingSet


class FidelityConfig(Section):
    """FID and its relatives: synthetic images against real training images, through torch-fidelity."""

    # inception: FID, IS, KID, precision, recall. small: fixed random filters, whose numbers have other names. none: the
    # weights of InceptionV3 are a download, and a CPU core makes about eight images a second.
    extractor: Literal["none", "inception", "small"] = "none"
    weights: str | None = None  # InceptionV3's file; None: torch-fidelity's own download
    num_images: Annotated[int, Field(ge=20)] | None = None  # of each set; None: the smaller set's number
    # Resamples of the intervals; one of 4,480 images takes seconds with InceptionV3's 2048 features on a CPU.
    bootstrap: Annotated[int, Field(ge=20)] = 100
    batch_size: Positive = 16


class EvaluateConfig(Section):
    """One pooled confusion matrix over the test split."""

    batch_size: Positive = 1  # images of one size are batched
    split: Literal["test", "train"] = "test"
    # Other images with masks than the prepared ones: a folder, and how it is read (auto: as the run's own dataset; for
    # a simulated one as `folder`, with the student's class table). It is brought to prepare.resize.
    folder: str | None = None
    dataset: Literal["auto", "osd", "sos", "folder"] = "auto"
    student: str | None = None  # one weights file from anywhere in place of the run's students
    # Objects (connected pixels of a class) are found where this share of their pixels is predicted as their class; of
    # the classes, those that the table has; in bins of size with these lower edges in pixels.
    object_classes: tuple[str, ...] = ("ship", "oil")
    object_coverage: Annotated[float, Field(gt=0, le=1)] = 0.5
    object_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (16, 64, 256, 1024)
    boundary_width: Annotated[float, Field(gt=0, lt=1)] = 0.02  # of the diagonal (Cheng et al. 2021)
    calibration_bins: Positive = 15  # of equal width in confidence (Guo et al. 2017)
    bootstrap: NonNegative = 1000  # resamples of the images for the intervals; 0 makes none
    weights: Literal["ema", "raw"] = "ema"  # of the students, in predict too
    # Sizes of the image, times its own, at which students look, in predict too: the largest logit of all counts.
    # DeepLabv2's multi-scale test is (0.5, 0.75, 1).
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (1.0,)
    num_pictures: NonNegative = 12  # predictions kept for the report
    fidelity: FidelityConfig = FidelityConfig()


class PredictConfig(Section):
    """Class maps for images: a file or a folder, or the test split where none is named."""

    inputs: str | None = None
    training_set: TrainingSet | None = None  # whose student; None takes the last of train_saross.training_sets
    num_images: Positive = 8  # taken from the test split where `inputs` is not set
    overlay_alpha: Fraction = 0.45
