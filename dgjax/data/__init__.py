"""Data sets in memory, for training and evaluation: `load_data(config, shape)` loads one.

`load_folder` loads a folder of images and `load_dataset` any other data set by its name.
"""

from dgjax.data.data_config import DataConfig
from dgjax.data.dataset import Dataset
from dgjax.data.image_folder import load_folder
from dgjax.data.named_datasets import NoHeldOut, load_data, load_dataset

__all__ = ["DataConfig", "Dataset", "NoHeldOut", "load_data", "load_dataset", "load_folder"]
