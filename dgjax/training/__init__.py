"""Train a model from a configuration: `fit(config, run_dir)`, then `export(run_dir, folder)`."""

from dgjax.data import load_data
from dgjax.training.config import TrainConfig
from dgjax.training.config_files import load_config
from dgjax.training.distillation import distil
from dgjax.training.edm2_average import import_edm2_average
from dgjax.training.export import export, plan_average
from dgjax.training.loop import Fit, fit
from dgjax.training.loss import denoising_loss

__all__ = [
    "Fit",
    "TrainConfig",
    "denoising_loss",
    "distil",
    "export",
    "fit",
    "import_edm2_average",
    "load_config",
    "load_data",
    "plan_average",
]
