"""A model ready to be used: its field in sampling coordinates, and what its checkpoint says."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dgjax.checkpoints.checkpoint import PIXELS, Meta, load, load_autoencoder, weight_bytes
from dgjax.checkpoints.pretrained import load_pretrained, pretrained_models
from dgjax.checkpoints.spec import Autoencoder, build_autoencoder
from dgjax.devices.placement import placement
from dgjax.model.field import Field, condition, repath
from dgjax.model.paths import edm

__all__ = ["Model", "condition_on_class", "density_title", "find_label", "open_model"]


class Model(NamedTuple):
    """A loaded model in sampling coordinates, and what its checkpoint says of it.

    With a `label` the field is that of the conditional density, and every log-density is of it.
    """

    field: Field
    meta: Meta
    name: str
    autoencoder: Autoencoder
    label: int | None = None

    @property
    def size(self) -> int:
        """Number of elements D of one sample."""
        return int(np.prod(self.meta.shape))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of a sample as a picture."""
        return self.autoencoder.image_shape

    def facts(self) -> dict[str, Any]:
        """What every summary says of the model; noise levels as sigma/alpha."""
        path = self.field.path
        ends = (self.field.t_min, self.field.t_max)
        # To the digits that float32 keeps through the change of clock.
        ratio = [float(f"{path.sigma(t) / path.alpha(t):.6g}") for t in ends]
        return {
            "model": self.name,
            "source": self.meta.source or None,  # of an imported one
            "shape": list(self.meta.shape),
            "latent": self.meta.latent,
            "class": self.label,
            "t_min": ratio[0],
            "t_max": ratio[1],
        }


def open_model(name: str) -> Model:
    """Load a model by name or folder, on EDM coordinates with the clock sigma^(1/7).

    A shipped model wins over a folder of the same name here; write ./NAME for the folder. One in a
    folder is cut over the local devices if it is too large for one, as by `placement`.

    Raises:
        ValueError: if there is no such model or it cannot be read.
    """
    folder = name not in pretrained_models() and (os.sep in name or Path(name).is_dir())
    if folder:
        sharding = placement(lambda: weight_bytes(name), jax.local_devices())
        field, meta = load(name, sharding)
        autoencoder = load_autoencoder(name)
    else:
        field, meta = load_pretrained(name)
        autoencoder = build_autoencoder(PIXELS, meta.shape)  # the shipped ones are of pixels
    return Model(repath(field, edm(7.0)), meta, name, autoencoder)


def density_title(facts: Mapping[str, Any]) -> str:
    """Which log-density it is that a summary with these `facts` of its model gives."""
    what = "log p" if facts["class"] is None else f"log p(x | class {facts['class']})"
    of = " of the latent" if facts["latent"] else ""
    return f"{what}{of} at t_min = {facts['t_min']:g}"


def condition_on_class(chosen: Model, name: str | None) -> Model:
    """`chosen` given the class `name`, as of `find_label`; as it is without one."""
    label = find_label(chosen, name)
    return chosen._replace(field=condition(chosen.field, label), label=label)


def find_label(chosen: Model, name: str | None) -> int | None:
    """The label that `name` stands for, its number or one of its names; None for no class.

    Raises:
        ValueError: if `chosen` takes no labels, or not this one.
    """
    if name is None:
        return None
    classes = chosen.meta.model.network.get("num_classes")
    if classes is None:
        raise ValueError(
            f"the model {chosen.name} takes no class labels: ask for no class, or choose a model "
            "trained with num_classes"
        )
    try:
        label = int(name)
    except ValueError:
        return _named_label(chosen, name)
    if not 0 <= label < classes:
        raise ValueError(
            f"class {label} is out of range: the model {chosen.name} takes 0 to {classes - 1}"
        )
    return label


def _named_label(chosen: Model, name: str) -> int:
    found = {
        word.strip().lower(): label
        for label, words in enumerate(chosen.meta.labels)
        for word in words.split(",")
    }
    if name.strip().lower() not in found:
        near = difflib.get_close_matches(name.lower(), found, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"the model {chosen.name} knows no class called {name!r}{hint}")
    return found[name.strip().lower()]
