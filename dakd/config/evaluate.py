"""The settings of `evaluate` and `predict`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dakd.config.base import Fraction, NonNegative, Positive, Scale, Section
from dakd.config.student import TrainingSet


class FidelityConfig(Section):
    """FID and its relatives: synthetic images against real training images, through torch-fidelity."""

    extractor: Literal["none", "inception", "small"] = "none"
    """Feature extractor. "inception": InceptionV3, for FID, IS, KID, precision and recall. "small": fixed random
    filters, whose numbers have other names. "none": no such numbers, since the weights of InceptionV3 are a download
    and a CPU core makes about eight images a second."""

    weights: str | None = None
    """Weights file of InceptionV3. null takes torch-fidelity's own download."""

    num_images: Annotated[int, Field(ge=20)] | None = None
    """Images of each set. null takes the number of the smaller set."""

    bootstrap: Annotated[int, Field(ge=20)] = 100
    """Resamples for the intervals; one of 4,480 images takes seconds with InceptionV3's 2048 features on a CPU."""

    batch_size: Positive = 16
    """Images per pass through the extractor."""


class EvaluateConfig(Section):
    """The evaluation of the students: one pooled confusion matrix over the test split."""

    batch_size: Positive = 1
    """Images per pass; images of one size are batched."""

    split: Literal["test", "train"] = "test"
    """Split of the prepared dataset that is evaluated."""

    folder: str | None = None
    """Folder of other images with masks, in place of the prepared ones. They are brought to prepare.resize."""

    dataset: Literal["auto", "osd", "sos", "folder"] = "auto"
    """Layout of `folder`. "auto" is the layout of the run's own dataset; for a simulated one it is "folder", with the
    student's class table."""

    student: str | None = None
    """A weights file from anywhere, in place of the run's students."""

    object_classes: tuple[str, ...] = ("ship", "oil")
    """Classes whose objects (connected pixels) are counted; of these, only those that the class table has."""

    object_coverage: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of an object's pixels that must be predicted as its class for it to count as found."""

    object_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (16, 64, 256, 1024)
    """Lower edges in pixels of the bins of object sizes."""

    boundary_width: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Width of a boundary over the diagonal of the image (Cheng et al. 2021)."""

    calibration_bins: Positive = 15
    """Number of bins, of equal width in confidence, for the calibration error (Guo et al. 2017)."""

    bootstrap: NonNegative = 1000
    """Resamples of the images for the intervals. 0 makes no intervals."""

    weights: Literal["ema", "raw"] = "ema"
    """Weights of the students, in predict too: their EMA or the last ones."""

    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (1.0,)
    """Sizes of the image, relative to its own, that students see, in predict too; the largest logit of all counts.
    DeepLabv2's multi-scale test is (0.5, 0.75, 1)."""

    num_pictures: NonNegative = 12
    """Predictions that are kept for the report."""

    fidelity: FidelityConfig = FidelityConfig()


class PredictConfig(Section):
    """Class maps for images."""

    inputs: str | None = None
    """An image file or a folder of images. null takes the test split."""

    training_set: TrainingSet | None = None
    """Training set whose student predicts. null takes the last of train_saross.training_sets."""

    num_images: Positive = 8
    """Images taken from the test split where `inputs` is not set."""

    overlay_alpha: Fraction = 0.45
    """Opacity of the class colours over the image."""
