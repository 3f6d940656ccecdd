"""Agreement between the hosts of a run: errors, the step to start from, and when to stop.

All hosts run the same program, and each waits for the others wherever arrays are exchanged. If one
host raised an error alone, the others would wait for ever. So code that can fail on a single host
runs inside `raise_on_all_hosts`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["check_same_step", "is_first_host", "raise_on_all_hosts", "stop_on_signal"]

MESSAGE_BYTES = 500  # of an error message, as sent to other hosts


def is_first_host() -> bool:
    """Return whether this is the host that writes files."""
    return jax.process_index() == 0


@contextmanager
def raise_on_all_hosts() -> Iterator[None]:
    """Barrier at the end of a block: if the block raises on one host, all hosts raise.

    The block must not contain another such block, nor anything else that waits for other hosts.

    Raises:
        ValueError: if the block raised on another host; the message names that host and its error.
            An error of this host's own block is raised unchanged.
    """
    try:
        yield
    except Exception as error:
        _all_messages(f"{error}" or type(error).__name__)
        raise
    messages = _all_messages("")
    if failed := [f"host {i}: {text}" for i, text in enumerate(messages) if text]:
        raise ValueError(f"stopped, because not all hosts can continue; {failed[0]}")


def _all_messages(own: str) -> list[str]:
    """Send this host's message, wait for all hosts, and return all messages in order of hosts."""
    if jax.process_count() == 1:
        return [own]
    padded = np.zeros(MESSAGE_BYTES, np.uint8)
    encoded = np.frombuffer(own.encode()[:MESSAGE_BYTES], np.uint8)
    padded[: len(encoded)] = encoded
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


def check_same_step(run_dir: Path, step: int) -> None:
    """Check that all hosts start from the same step.

    Args:
        run_dir: the run folder, for the error message.
        step: from which this host would start.

    Raises:
        ValueError: if the steps differ between hosts.
    """
    steps = set(np.ravel(multihost_utils.process_allgather(np.asarray(step))).tolist())
    if len(steps) > 1:
        raise ValueError(
            f"hosts would start from different steps {sorted(steps)}: {run_dir} must be one folder "
            "that all hosts share"
        )


@contextmanager
def stop_on_signal(every: int) -> Iterator[Callable[[int], bool]]:
    """Catch SIGINT and SIGTERM inside a block, so that a training loop can end between two steps.

    Args:
        every: several hosts exchange whether a signal came only at steps that this number divides.
            So all of them stop at the same step.

    Yields:
        A function from the step to whether to stop; call it before every step, on all hosts.
    """
    received: list[int] = []

    def should_stop(step: int) -> bool:
        if jax.process_count() == 1:
            return bool(received)
        if step % every:
            return False
        return bool(multihost_utils.process_allgather(np.asarray(len(received))).any())

    if threading.current_thread() is not threading.main_thread():
        yield should_stop  # Python delivers signals to the main thread only
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda number, frame: received.append(number)) for s in signals]
    try:
        yield should_stop
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)
