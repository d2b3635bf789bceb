"""What IoU, F1 and accuracy mean: one pooled confusion matrix and the scores that follow from it."""

from __future__ import annotations

from dakd.metrics.confusion import ConfusionMatrix
from dakd.metrics.scores import SegmentationScores, score
from dakd.metrics.tables import format_scores, format_table

__all__ = ["ConfusionMatrix", "SegmentationScores", "format_scores", "format_table", "score"]
