"""What the hosts of a run tell each other: whether all are well, where they are, when to stop.

Every host runs the same program and waits for the others wherever arrays go between them. One
that stops alone would leave them waiting, so what can fail on one alone is done `together`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["check_same_step", "first_host", "interruptible", "together"]

LENGTH = 500  # bytes of an error that other hosts get to read


def first_host() -> bool:
    """Whether this is the host that writes."""
    return jax.process_index() == 0


@contextmanager
def together() -> Iterator[None]:
    """Every host comes to the end of the block, or none goes on.

    A block must not hold another, nor wait for other hosts in another way.

    Raises:
        ValueError: if an error was raised in another host's block; it says which and what.
    """
    try:
        yield
    except Exception as error:
        _tell(f"{error}" or type(error).__name__)
        raise
    said = _tell("")
    if bad := [f"host {i}: {text}" for i, text in enumerate(said) if text]:
        raise ValueError(f"stopped, as not all hosts can go on; {bad[0]}")


def _tell(text: str) -> list[str]:
    """What every host has to say."""
    if jax.process_count() == 1:
        return [text]
    own = np.zeros(LENGTH, np.uint8)
    encoded = np.frombuffer(text.encode()[:LENGTH], np.uint8)
    own[: len(encoded)] = encoded
    every = multihost_utils.process_allgather(own)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in np.asarray(every)]


def check_same_step(run_dir: Path, step: int) -> None:
    """Raise a ValueError unless all hosts go on from the same step."""
    steps = set(np.ravel(multihost_utils.process_allgather(np.asarray(step))).tolist())
    if len(steps) > 1:
        raise ValueError(
            f"hosts would go on from steps {sorted(steps)}: {run_dir} must be one folder, which "
            "they share"
        )


@contextmanager
def interruptible(every: int) -> Iterator[Callable[[int], bool]]:
    """`stopped(step)`, whether SIGINT or SIGTERM has come, so that a step is always finished.

    Several hosts must stop at the same step: they ask each other where `every` divides it.
    """
    received: list[int] = []

    def stopped(step: int) -> bool:
        if jax.process_count() == 1:
            return bool(received)
        if step % every:
            return False
        return bool(multihost_utils.process_allgather(np.asarray(len(received))).any())

    if threading.current_thread() is not threading.main_thread():
        yield stopped  # signals only come to the main thread
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda number, frame: received.append(number)) for s in signals]
    try:
        yield stopped
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)
