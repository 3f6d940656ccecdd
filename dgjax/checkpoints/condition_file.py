"""Read a condition, such as the embeddings of a prompt, that another program wrote as npz."""

import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgjax.model.field import Field
from dgjax.typing import Cond

__all__ = ["StoredCondition", "check_condition", "read_condition"]

NEGATIVE = "negative"


class StoredCondition(NamedTuple):
    """A condition that was read from a file.

    Attributes:
        cond: as the network takes it.
        null: what classifier-free guidance leads away from; None if the file has none.
    """

    cond: Cond
    null: Cond


def read_condition(file: Path) -> StoredCondition:
    """Read a condition from the arrays of an npz file.

    Their names are those that the network knows, such as `encoder_hidden_states`. A dot stands
    between the names of nested mappings, as in `added_cond_kwargs.text_embeds`. Names that begin
    with `negative.` make up what classifier-free guidance leads away from. A file with one array
    named `cond`, and perhaps `negative.cond`, holds arrays in place of mappings.

    Args:
        file: the file.

    Raises:
        ValueError: if it cannot be read, holds anything but numbers, or no condition.
    """
    try:
        with file.open("rb") as stream:
            stored = np.load(stream)
            arrays = dict(stored) if isinstance(stored, np.lib.npyio.NpzFile) else None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        is_other = file.is_file() and not zipfile.is_zipfile(file)
        reason = "it is none" if is_other else _reason(error)
        raise ValueError(
            f"{file} cannot be read as an npz file of a condition: {reason}"
        ) from error
    if arrays is None:
        raise ValueError(
            f"{file} holds one array without a name: write an npz file of named arrays, such as "
            "numpy.savez(FILE, encoder_hidden_states=...)"
        )
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} in {file} must hold numbers, got {array.dtype}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} in {file} must be finite, but has NaN or infinite values")
        *outer, last = name.split(".")
        inner = tree
        for part in outer:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{file} has an array {part} and arrays inside {part}")
        if last in inner:
            raise ValueError(f"{file} has an array {name} and arrays inside {name}")
        inner[last] = jnp.asarray(array)
    null = tree.pop(NEGATIVE, None)
    if not tree:
        raise ValueError(f"{file} has no arrays of a condition, such as encoder_hidden_states")
    return StoredCondition(_bare(tree), None if null is None else _bare(null))


def check_condition(field: Field, cond: Cond, what: str) -> None:
    """Check that a network takes a condition. The network is traced, not evaluated.

    Whole numbers stay concrete, so that networks check the range of labels.

    Args:
        field: the model, which knows the shape of its samples.
        cond: the condition.
        what: what it is called in the message.

    Raises:
        ValueError: if the network refuses it.
    """
    x = jnp.zeros(field.shape)
    leaves, structure = jax.tree.flatten(cond)
    known = [jnp.issubdtype(jnp.result_type(leaf), jnp.integer) for leaf in leaves]

    def predict(x, traced):
        chosen = [leaf if k else t for leaf, t, k in zip(leaves, traced, known, strict=True)]
        return field.pair(field.t_max, x, jax.tree.unflatten(structure, chosen)).eps

    try:
        jax.eval_shape(predict, x, leaves)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"the model does not take {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the first line of an error's message, without the number of an error of files."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def _bare(tree: Any) -> Any:
    return tree["cond"] if isinstance(tree, dict) and tree.keys() == {"cond"} else tree
