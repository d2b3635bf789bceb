"""The settings of `evaluate` and `predict`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dakd.config.base import NonNegative, Positive, Scale, Section
from dakd.config.student import TrainingSet


class FidelityConfig(Section):
    """FID and its relatives: synthetic images against real training images, by torch-fidelity."""

    extractor: Literal["none", "inception", "small"] = "none"
    """Net that makes the features. "inception": InceptionV3, for FID, IS, KID, precision and recall. "small": fixed
    random filters, whose numbers have other names. "none", the default: no such numbers, since the weights of
    InceptionV3 are a download and a CPU core takes a second for about eight images."""

    weights: str | None = None
    """Weights file of InceptionV3. null takes the one that torch-fidelity downloads."""

    num_images: Annotated[int, Field(ge=20)] | None = None
    """Images of each set. null takes the size of the smaller set."""

    bootstrap: Annotated[int, Field(ge=40)] = 100
    """Resamples for the intervals; one of 4,480 images takes seconds with InceptionV3's 2048 features on a CPU. Fewer
    than 10 images have no intervals."""


class EvaluateConfig(Section):
    """The evaluation of the students: one pooled confusion matrix over the test split."""

    batch_size: Positive = 1
    """Images per pass; images of one size are batched."""

    split: Literal["test", "train"] = "test"
    """Split of the prepared dataset that is evaluated."""

    folder: str | None = None
    """Folder of other images with masks, in place of the prepared ones. They are resized to prepare.resize."""

    dataset: Literal["auto", "osd", "sos", "folder"] = "auto"
    """Layout of `folder`. "auto" is the layout of the run's own dataset; where that is simulated, it is "folder" with
    the student's class table."""

    student: str | None = None
    """A weights file from anywhere, in place of the run's students."""

    object_classes: tuple[str, ...] = ("ship", "oil")
    """Classes whose objects (connected pixels) are counted. Of the default ones, those that the class table lacks are
    skipped."""

    bootstrap: NonNegative = 1000
    """Resamples of the images for the intervals. 0 makes no intervals; below 40, none lies in the tails of one of 95 %,
    so that there are none either. There are none of fewer than 10 images."""

    weights: Literal["ema", "raw"] = "ema"
    """Weights of the students: their EMA or the last ones. The step predict takes the same ones."""

    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (1.0,)
    """Sizes of the image, relative to its own, that students see; of each class the largest logit counts.
    DeepLabv2's multi-scale test is (0.5, 0.75, 1). The step predict takes the same ones."""

    num_pictures: NonNegative = 12
    """Held-out images whose predictions are kept for the report."""

    fidelity: FidelityConfig = FidelityConfig()


class PredictConfig(Section):
    """Class maps for images.

    The student's weights and scales are those of `evaluate.weights` and `evaluate.scales`, so that the scores hold
    for the predictions.
    """

    inputs: str | None = None
    """An image file or a folder of images. null takes the test split."""

    training_set: TrainingSet | None = None
    """Training set whose student predicts. null takes the last of train_saross.training_sets."""

    num_images: Positive = 8
    """Images taken from the test split where `inputs` is not set."""

    scenes: tuple[str, ...] = ()
    """Radar scenes whose slicks are outlined, as `dakd scene` does: files, folders, or "simulated", which makes one of
    768 x 1024 pixels. Needs the extra geo. Results go to RUN/scene/TRAINING_SET."""
