"""Training: `fit(config, run_dir)` trains, `export(run_dir, folder)` makes a model of a run."""

from dgjax.data.named_datasets import load_data
from dgjax.training.config import TrainConfig, load_config
from dgjax.training.export import average_recipe, export
from dgjax.training.loop import Fit, fit
from dgjax.training.loss import denoising_loss

__all__ = [
    "Fit",
    "TrainConfig",
    "average_recipe",
    "denoising_loss",
    "export",
    "fit",
    "load_config",
    "load_data",
]
