"""Measures of a model's quality, each with a confidence interval where one is known.

Distances between samples and data in a feature space (`frechet`, `precision_recall`), how well
log-density can be trusted (`inconsistency`), how well the quantile q is calibrated (`normality`),
score alignment and spacetime geometry. `metrics` applies them to a checkpoint and a data set.
"""
