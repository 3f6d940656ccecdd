"""The section `[data]` of a configuration: which data to use."""

from dataclasses import dataclass

from dgjax.checkpoints.configuration import check_fields, unknown_name
from dgjax.data.image_folder import CROPS
from dgjax.pictures.image_files import check_levels

__all__ = ["DataConfig"]

LONGEST = 1000
LEAST_SIGMA, MOST_SIGMA = 1e-15, 1e15  # float32 holds their squares


@dataclass(frozen=True)
class DataConfig:
    """The training data, and how images are cropped, flipped and held out.

    Attributes:
        dataset: "fashion-mnist", "digits", "npz" (a file) or "folder" (of images).
        sigma_data: standard deviation of the data, for the weighting of the loss.
        path: file or folder of the data; needed for "npz" and "folder".
        flip: whether to mirror half of the images left-right.
        crop: "centre" or "random", for a folder of images.
        held_out: fraction of a folder of images that training does not see, in [0, 1).
        levels: (black, white), the levels of pictures of 16 bits in a folder that become black and
            white: (0, 4095) for pictures of 12 bits. None for (0, 65535).
        licence: of the data, in one line, for the metadata of the model. It may change when a run
            is resumed.

    Raises:
        ValueError: if a value has the wrong type, is out of range, or does not fit the others.
    """

    dataset: str
    sigma_data: float
    path: str | None = None
    flip: bool = False
    crop: str = "centre"
    held_out: float = 0.0
    levels: tuple[float, float] | None = None
    licence: str | None = None

    def __post_init__(self):
        check_fields("data", self)
        if not LEAST_SIGMA <= self.sigma_data <= MOST_SIGMA:
            raise ValueError(
                f"data: sigma_data must be positive, in [{LEAST_SIGMA:g}, {MOST_SIGMA:g}], got "
                f"{self.sigma_data}"
            )
        if not (self.licence or "").isprintable() or len(self.licence or "") > LONGEST:
            raise ValueError(
                f"data: licence must be one line of at most {LONGEST:,} printable characters"
            )
        if self.crop not in CROPS:
            raise unknown_name("data: crop", self.crop, CROPS)
        if not 0 <= self.held_out < 1:
            raise ValueError(f"data: held_out must be in [0, 1), got {self.held_out}")
        if self.dataset == "folder" and self.path is None:
            raise ValueError("data set folder needs a path: set data.path to the folder of images")
        if self.levels is not None:
            check_levels(self.levels)
            if self.dataset != "folder":
                raise ValueError(f"data: levels is for folders of images, not for {self.dataset}")
        if self.dataset != "folder" and (self.crop, self.held_out) != ("centre", 0):
            raise ValueError(f"data: crop and held_out are for folders, not for {self.dataset}")
