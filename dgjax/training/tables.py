"""The tables of a training configuration, each with what it accepts."""

from dataclasses import dataclass

from dgjax.configuration import check_fields, unknown_name
from dgjax.training.placement import PLACEMENTS
from dgjax.training.precision import PRECISIONS

__all__ = ["Execution", "Optimiser", "Records"]


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
        check_fields("optimiser", self)
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
        check_fields("execution", self)
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
        check_fields("records", self)
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
