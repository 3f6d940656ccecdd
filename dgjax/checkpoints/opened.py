"""Open a model ready for sampling, and choose one of its classes."""

import difflib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dgjax.checkpoints.autoencoder_spec import Autoencoder, build_autoencoder
from dgjax.checkpoints.checkpoint import load, load_autoencoder, weight_bytes
from dgjax.checkpoints.meta import PIXELS, Meta
from dgjax.checkpoints.own_code import is_code, load_code
from dgjax.checkpoints.pretrained import load_pretrained, pretrained_models
from dgjax.checkpoints.resolution import resize
from dgjax.devices.placement import choose_weight_sharding
from dgjax.model.conditioned import condition
from dgjax.model.field import Field
from dgjax.model.paths import edm
from dgjax.model.repath import repath

SHOWN = 40  # characters of a prompt in a title

__all__ = ["Model", "condition_on_class", "density_title", "find_label", "open_model"]

MOST_NAMED = 12  # classes in a message


class Model(NamedTuple):
    """A loaded model in sampling coordinates, and the facts about it.

    Attributes:
        field: the model on the path `edm(7.0)`; with a `label`, that of the conditional density,
            to which every log-density then refers.
        meta: facts that its checkpoint states.
        name: name of a shipped model, or the model's folder.
        autoencoder: maps between samples and images; the identity if samples are images.
        label: the class the field is conditioned on, or None.
        prompt: the text the field is conditioned on, or None.
        distilled: the guidance weight that a distilled network takes beside the prompt, or None.
        file: name of the file with the condition, or None.
        dtype: of the weights in memory.
    """

    field: Field
    meta: Meta
    name: str
    autoencoder: Autoencoder
    label: int | None = None
    prompt: str | None = None
    distilled: float | None = None
    file: str | None = None
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of elements D of one sample."""
        return int(np.prod(self.meta.shape))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape (H, W, C) of one image."""
        return self.autoencoder.image_shape

    @property
    def has_pictures(self) -> bool:
        """Whether samples, decoded where they are latents, are grey or colour pictures."""
        return len(self.image_shape) == 3 and self.image_shape[-1] in (1, 3)

    @property
    def has_levels(self) -> bool:
        """Whether samples are pictures themselves, whose levels bits per dimension count."""
        return self.has_pictures and not self.meta.latent

    @property
    def class_name(self) -> str | None:
        """Name of the class the field is conditioned on, or its number if the classes have none."""
        if self.label is None:
            return None
        words = self.meta.labels[self.label] if self.label < len(self.meta.labels) else ""
        return words.split(",")[0].strip() or str(self.label)

    def facts(self) -> dict[str, Any]:
        """Return the facts that every summary states; noise levels are sigma/alpha."""
        path = self.field.path
        ends = (self.field.t_min, self.field.t_max)
        # Rounded to the digits that float32 keeps through the change of time.
        ratio = [float(f"{path.sigma(t) / path.alpha(t):.6g}") for t in ends]
        return {
            "model": self.name,
            "source": self.meta.source or None,  # None for a model trained by dgjax
            "shape": list(self.meta.shape),
            "latent": self.meta.latent,
            "class": self.label,
            **({} if self.label is None else {"class_name": self.class_name}),
            **({} if self.prompt is None else {"prompt": self.prompt}),
            **({} if self.file is None else {"cond": self.file}),
            **({} if self.distilled is None else {"distilled_guidance": self.distilled}),
            **({} if self.dtype == "float32" else {"dtype": self.dtype}),
            "t_min": ratio[0],
            "t_max": ratio[1],
        }


def open_model(
    name: str, *, height: int | None = None, width: int | None = None, dtype: str = "float32"
) -> Model:
    """Load a model by name or folder, in EDM coordinates with time t = sigma^(1/7).

    The weights are cut over the local devices if they are too large for one.

    Args:
        name: name of a shipped model, a checkpoint's folder, or `FILE.py:FUNCTION`, a function that
            makes a model (see `dgjax.checkpoints.own_code`). A shipped model is preferred to a
            folder of the same name: pass "./NAME" for the folder.
        height: height of the pictures in pixels, where the weights allow another one than that of
            the checkpoint.
        width: width of the pictures in pixels.
        dtype: of the weights in memory, by name, as of `dgjax.checkpoints.load`.

    Raises:
        ValueError: if there is no such model, it cannot be read, it has no such resolution, or its
            code gives its weights another dtype.
    """
    if is_code(name):
        if dtype != "float32":
            raise ValueError(
                "a model that code makes has weights of the dtype that the code gives them: leave "
                f"out {dtype}"
            )
        field, meta = load_code(name)
        autoencoder = build_autoencoder(PIXELS, meta.shape)
        field, meta, autoencoder = resize(field, meta, autoencoder, height, width)
        return Model(repath(field, edm(7.0)), meta, name, autoencoder)
    if name.endswith(".py"):
        raise ValueError(
            f"{name} is a file of code: name the function in it that makes the model, as "
            f"{name}:FUNCTION"
        )
    is_folder = name not in pretrained_models() and (os.sep in name or os.path.isdir(name))
    if is_folder:
        sharding = choose_weight_sharding(lambda: weight_bytes(name, dtype), jax.local_devices())
        field, meta = load(name, sharding, dtype=dtype)
        autoencoder = load_autoencoder(name)
    else:
        field, meta = load_pretrained(name, dtype=dtype)
        autoencoder = build_autoencoder(PIXELS, meta.shape)  # no shipped model is of latents
    field, meta, autoencoder = resize(field, meta, autoencoder, height, width)
    return Model(repath(field, edm(7.0)), meta, name, autoencoder, dtype=dtype)


def density_title(facts: Mapping[str, Any]) -> str:
    """Return a title that says which log-density a summary states.

    Args:
        facts: as of `Model.facts`.
    """
    given = None if facts["class"] is None else f"class {facts['class_name']}"
    if (prompt := facts.get("prompt")) is not None:
        given = repr(prompt if len(prompt) <= SHOWN else f"{prompt[: SHOWN - 3]}...")
    if (file := facts.get("cond")) is not None:
        given = f"{file}"
    what = "log p" if given is None else f"log p(x | {given})"
    of = " of the latent" if facts["latent"] else ""
    return f"{what}{of} at t_min = {facts['t_min']:g}"


def condition_on_class(chosen: Model, name: str | None) -> Model:
    """Condition a model on a class.

    Args:
        chosen: the model.
        name: number or name of the class, as of `find_label`; None for no class.

    Returns:
        The conditional model, or `chosen` with its unconditional density.

    Raises:
        ValueError: as of `find_label`.
    """
    label = find_label(chosen, name)
    return chosen._replace(field=condition(chosen.field, label), label=label)


def find_label(chosen: Model, name: str | None) -> int | None:
    """Find the label of a class of the model.

    Args:
        chosen: the model.
        name: the label as a number, or one of the class's names; None for no class.

    Returns:
        The label, or None for no class.

    Raises:
        ValueError: if the model takes no labels, or has no such class.
    """
    if name is None:
        return None
    classes = chosen.meta.model.network.get("num_classes")
    if classes is None and chosen.meta.model.network.get("class_embedding"):
        raise ValueError(
            f"the condition of the model {chosen.name} is a number or a vector, not a class: pass "
            "it as cond, or in an npz file as its array cond"
        )
    if classes is None and chosen.meta.text:
        raise ValueError(f"the model {chosen.name} takes a prompt, not a class: give a prompt")
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
        if not near:
            known = ", ".join([*found][:MOST_NAMED]) + (", ..." if len(found) > MOST_NAMED else "")
            hint = f": it has {known}" if found else ": its classes have no names, give a number"
        raise ValueError(f"the model {chosen.name} knows no class called {name!r}{hint}")
    return found[name.strip().lower()]
