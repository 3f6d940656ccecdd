"""The tables of a training configuration, each with what it accepts."""

from dataclasses import dataclass, fields
from typing import Any

from dgjax.spec import check_types, unknown_name
from dgjax.training.folder import CROPS
from dgjax.training.placement import PLACEMENTS
from dgjax.training.precision import PRECISIONS

__all__ = ["Data", "Execution", "Optimiser", "Records"]


def _check_types(where: str, table: Any) -> None:
    check_types(where, vars(table), {f.name: f.type for f in fields(table)})


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
        _check_types("data", self)
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


@dataclass(frozen=True)
class Optimiser:
    """Adam with clipped gradients.

    Attributes:
        learning_rate: after `warmup` steps of linear rise; constant then, or falling to 0 along a
            cosine at the last step.
        schedule: "cosine" or "constant".
        clip: largest norm of the gradient.
        beta2: memory of Adam's second moment.
    """

    learning_rate: float = 1e-3
    warmup: int = 200
    schedule: str = "cosine"
    clip: float = 1.0
    beta2: float = 0.99

    def __post_init__(self):
        _check_types("optimiser", self)
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(
                f"optimiser: schedule must be 'cosine' or 'constant', got {self.schedule!r}"
            )
        if not (self.learning_rate > 0 and self.clip > 0 and self.warmup >= 0):
            raise ValueError("optimiser: learning_rate, clip must be positive, warmup at least 0")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"optimiser: beta2 must lie in [0, 1), got {self.beta2}")


@dataclass(frozen=True)
class Execution:
    """How the steps are worked out, which may change when a run goes on elsewhere.

    Attributes:
        parameters: "replicated", a whole copy of the state on every device, or "sharded", each
            array split over the devices and the weights put together for each step.
        accumulate: number of parts that a batch is worked through in, for less memory.
        precision: of matrix products and convolutions, "float32" or "bfloat16".
        threads, ahead: that make batches, and batches that lie ready.
    """

    parameters: str = "replicated"
    accumulate: int = 1
    precision: str = "float32"
    threads: int = 2
    ahead: int = 8

    def __post_init__(self):
        _check_types("execution", self)
        if self.parameters not in PLACEMENTS:
            raise unknown_name("execution: parameters", self.parameters, PLACEMENTS)
        if self.precision not in PRECISIONS:
            raise unknown_name("execution: precision", self.precision, PRECISIONS)
        if not (self.accumulate >= 1 and self.threads >= 1 and self.ahead >= 1):
            raise ValueError("execution: accumulate, threads and ahead must be at least 1")


@dataclass(frozen=True)
class Records:
    """What is kept of a run and shown of it, which may change when it goes on.

    Attributes:
        save_every: steps between checkpoints.
        keep: number of latest checkpoints that are kept.
        keep_every: checkpoints of steps that this divides are kept for good; 0 for none.
        log_every: steps between lines of metrics.
        watch_every: steps between losses on held-out data and pictures of samples; 0 for never.
        watch_samples: held-out samples that the losses are measured on.
    """

    save_every: int = 250
    keep: int = 2
    keep_every: int = 0
    log_every: int = 10
    watch_every: int = 1000
    watch_samples: int = 256

    def __post_init__(self):
        _check_types("records", self)
        for name in ("save_every", "keep", "log_every", "watch_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"records: {name} must be at least 1, got {getattr(self, name)}")
        if self.keep_every < 0 or self.watch_every < 0:
            raise ValueError("records: keep_every and watch_every must be at least 0")
        if self.keep_every % self.save_every:
            raise ValueError(
                f"records: keep_every = {self.keep_every} must be a multiple of save_every = "
                f"{self.save_every}, which makes the checkpoints"
            )
