"""Segmentation scores from one pooled confusion matrix; objects found by size, boundary IoU, calibration; bootstrap
intervals; and measures of images: speckle, texture and the distances between two sets."""

from __future__ import annotations

from dakd.metrics.bootstrap import bootstrap, over_seeds, paired_bootstrap
from dakd.metrics.boundary import BoundaryCounts
from dakd.metrics.calibration import CalibrationCounts
from dakd.metrics.confusion import ConfusionMatrix
from dakd.metrics.objects import ObjectCounts
from dakd.metrics.scores import SegmentationScores, pooled_score, score
from dakd.metrics.tables import format_scores, format_table

__all__ = [
    "BoundaryCounts",
    "CalibrationCounts",
    "ConfusionMatrix",
    "ObjectCounts",
    "SegmentationScores",
    "bootstrap",
    "format_scores",
    "format_table",
    "over_seeds",
    "paired_bootstrap",
    "pooled_score",
    "score",
]
