"""Training: `fit(config, run_dir)` trains, `export(run_dir, folder)` makes a model of a run."""

from dgjax.training.config import TrainConfig, load_config
from dgjax.training.loop import Fit, export, fit
from dgjax.training.loss import denoising_loss

__all__ = ["Fit", "TrainConfig", "denoising_loss", "export", "fit", "load_config"]
