"""How good a model is, in figures with an interval of confidence each.

Distances between samples and data in a feature space, how normal the statistic is that density
guidance rests on, and how far log-density depends on the route by which it is found.
Log-densities and alignment are measured elsewhere.
"""

from dgjax.evaluation.features import FEATURES, Features, make_features, pixels
from dgjax.evaluation.frechet import frechet_distance, frechet_gaussian, frechet_interval
from dgjax.evaluation.inconsistency_statistics import (
    InconsistencyStatistics,
    inconsistency_statistics,
)
from dgjax.evaluation.intervals import Estimate, mean_interval, share_interval
from dgjax.evaluation.normality import Normality, h_statistic, normality
from dgjax.evaluation.precision_recall import PrecisionRecall, precision_recall
from dgjax.evaluation.vgg16 import VGG16, vgg16

__all__ = [
    "FEATURES",
    "VGG16",
    "Estimate",
    "Features",
    "InconsistencyStatistics",
    "Normality",
    "PrecisionRecall",
    "frechet_distance",
    "frechet_gaussian",
    "frechet_interval",
    "h_statistic",
    "inconsistency_statistics",
    "make_features",
    "mean_interval",
    "normality",
    "pixels",
    "precision_recall",
    "share_interval",
    "vgg16",
]
