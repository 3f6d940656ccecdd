"""Sections of a training configuration, each a dataclass that checks its values."""

from dataclasses import dataclass

from dgjax.checkpoints.configuration import check_fields, unknown_name
from dgjax.training.data_parallel import PARAMETER_LAYOUTS
from dgjax.training.precision import PRECISIONS

__all__ = ["Execution", "Optimiser", "Records"]

SMALLEST = 1e-30  # below, float32 soon has only 0
MOST_THREADS, MOST_AHEAD = 1024, 10**4


@dataclass(frozen=True)
class Optimiser:
    """The section `[optimiser]`: Adam with gradient clipping and a learning-rate schedule.

    Attributes:
        learning_rate: largest learning rate, reached after `warmup` steps.
        warmup: number of steps of linear increase from 0.
        schedule: after warm-up, "cosine" falls to 0 at the last step, "constant" stays.
        clip: largest norm of the gradient; a larger gradient is scaled down to it.
        beta2: decay rate of Adam's second moment, in [0, 1).

    Raises:
        ValueError: if a value has the wrong type or is out of range.
    """

    learning_rate: float = 1e-3
    warmup: int = 200
    schedule: str = "cosine"
    clip: float = 1.0
    beta2: float = 0.99

    def __post_init__(self):
        check_fields("optimiser", self)
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(
                f"optimiser: schedule must be 'cosine' or 'constant', got {self.schedule!r}"
            )
        if not (min(self.learning_rate, self.clip) >= SMALLEST and self.warmup >= 0):
            raise ValueError(
                f"optimiser: learning_rate and clip must be positive (at least {SMALLEST:g}) and "
                f"warmup at least 0, got {self.learning_rate}, {self.clip} and {self.warmup}"
            )
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"optimiser: beta2 must lie in [0, 1), got {self.beta2}")


@dataclass(frozen=True)
class Execution:
    """The section `[execution]`: how steps are computed. It may change when a run is resumed.

    Attributes:
        parameters: "replicated" for a copy of the state on every device, "sharded" to split it
            over the devices and gather the weights in every step.
        accumulate: number of microbatches that a batch is divided into, for less memory.
        precision: of matrix products and convolutions, "float32" or "bfloat16".
        threads: number of threads that make batches.
        ahead: number of batches to hold ready.

    Raises:
        ValueError: if a value has the wrong type or is out of range.
    """

    parameters: str = "replicated"
    accumulate: int = 1
    precision: str = "float32"
    threads: int = 2
    ahead: int = 8

    def __post_init__(self):
        check_fields("execution", self)
        if self.parameters not in PARAMETER_LAYOUTS:
            raise unknown_name("execution: parameters", self.parameters, PARAMETER_LAYOUTS)
        if self.precision not in PRECISIONS:
            raise unknown_name("execution: precision", self.precision, PRECISIONS)
        if not (self.accumulate >= 1 and self.threads >= 1 and self.ahead >= 1):
            raise ValueError("execution: accumulate, threads and ahead must be at least 1")
        for name, most in (("threads", MOST_THREADS), ("ahead", MOST_AHEAD)):
            if getattr(self, name) > most:
                raise ValueError(f"execution: {name} must be at most {most:,}")


@dataclass(frozen=True)
class Records:
    """The section `[records]`: checkpoints, logs and validation. It may change on resuming.

    Attributes:
        save_every: number of steps between checkpoints.
        keep: number of latest checkpoints to keep.
        keep_every: checkpoints at multiples of this step are kept for ever; 0 for none. It must be
            a multiple of `save_every`.
        log_every: number of steps between lines of metrics.
        validate_every: number of steps between validations (losses on held-out data and pictures
            of samples); 0 for never.
        validation_samples: number of held-out samples that the losses are measured on.

    Raises:
        ValueError: if a value has the wrong type or is out of range.
    """

    save_every: int = 250
    keep: int = 2
    keep_every: int = 0
    log_every: int = 10
    validate_every: int = 1000
    validation_samples: int = 256

    def __post_init__(self):
        check_fields("records", self)
        for name in ("save_every", "keep", "log_every", "validation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"records: {name} must be at least 1, got {getattr(self, name)}")
        if self.keep_every < 0 or self.validate_every < 0:
            raise ValueError("records: keep_every and validate_every must be at least 0")
        if self.keep_every % self.save_every:
            raise ValueError(
                f"records: keep_every = {self.keep_every} must be a multiple of save_every = "
                f"{self.save_every}, the steps that have checkpoints"
            )
