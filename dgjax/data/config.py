"""The section of a configuration that says which data to use."""

from dataclasses import dataclass

from dgjax.configuration import check_fields, unknown_name
from dgjax.data.folder import CROPS

__all__ = ["Data"]


@dataclass(frozen=True)
class Data:
    """What to train on.

    Attributes:
        dataset: "fashion-mnist", "digits", "npz" or "folder".
        sigma_data: standard deviation of the data, for the loss weight.
        path: file or folder of the data, if it is not found by its name.
        flip: mirror half of the images left-right.
        crop: of the images in a folder, "centre" or "random".
        held_out: fraction of the images in a folder that training does not see.
        licence: of the data, in one line, for what is said of the model; may change when a run
            goes on.
    """

    dataset: str
    sigma_data: float
    path: str | None = None
    flip: bool = False
    crop: str = "centre"
    held_out: float = 0.0
    licence: str | None = None

    def __post_init__(self):
        check_fields("data", self)
        if not self.sigma_data > 0:
            raise ValueError(f"data: sigma_data must be positive, got {self.sigma_data}")
        if self.crop not in CROPS:
            raise unknown_name("data: crop", self.crop, CROPS)
        if not 0 <= self.held_out < 1:
            raise ValueError(f"data: held_out must be in [0, 1), got {self.held_out}")
        if self.dataset == "folder" and self.path is None:
            raise ValueError("data set folder needs a path: set data.path to the folder of images")
        if self.dataset != "folder" and (self.crop, self.held_out) != ("centre", 0):
            raise ValueError(f"data: crop and held_out are for folders, not for {self.dataset}")
