"""Specify the head of a distilled divergence in plain numbers and names, as checkpoints hold it.

It is `{"kind": name, ...arguments}`: the name of a constructor and its arguments.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from dgjax.checkpoints.configuration import check_kind, check_sizes, construct
from dgjax.networks.trace_head import DiagonalHead

__all__ = ["TRACE_HEADS", "build_head", "check_head", "head_spec"]

TRACE_HEADS: dict[str, Callable[..., Any]] = {"diagonal": DiagonalHead}


def head_spec(head: Any) -> dict[str, Any]:
    """Return the specification of a model's head; empty if the model has none.

    Raises:
        ValueError: if the head is of no kind that a checkpoint can hold.
    """
    if head is None:
        return {}
    for kind, maker in TRACE_HEADS.items():
        if type(head) is maker:
            return {"kind": kind, **head.arguments}
    raise ValueError(
        f"a checkpoint holds heads of the kinds {', '.join(TRACE_HEADS)}, not {type(head).__name__}"
    )


def check_head(values: Any) -> None:
    """Check that `values` specify a head, or are empty.

    Raises:
        ValueError: if the kind or the name of an argument is unknown, or a value is of a wrong
            type.
    """
    if values != {}:
        check_kind("trace_head", TRACE_HEADS, values, ("shape", "rngs"))
        check_sizes("trace_head", values)


def build_head(values: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Build a head with fresh weights.

    Args:
        values: `{"kind": name, ...arguments}`, a kind of `TRACE_HEADS`.
        shape: shape of one sample of the model.

    Raises:
        ValueError: if the constructor refuses its arguments.
    """
    return construct("trace_head", TRACE_HEADS, values, shape=shape, rngs=nnx.Rngs(0))
