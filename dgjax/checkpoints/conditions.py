"""Choose what a model is conditioned on: a class, a prompt, or the arrays in a file."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from dgjax.checkpoints.checkpoint import load_prompt_encoder
from dgjax.checkpoints.condition_file import StoredCondition, check_condition, read_condition
from dgjax.checkpoints.opened import Model, find_label
from dgjax.checkpoints.prompt_conditions import DISTILLED_GUIDANCE
from dgjax.checkpoints.prompts import PromptEncoder, check_distilled_guidance
from dgjax.checkpoints.spec import ModelSpec
from dgjax.model.conditioned import condition
from dgjax.networks.prompt_inputs import GUIDANCE
from dgjax.typing import Cond

__all__ = ["Condition", "Negative", "condition_model", "encode_prompts", "find_condition"]


class Negative(NamedTuple):
    """The text that classifier-free guidance leads away from.

    Attributes:
        text: a text; None for no text.
    """

    text: str | None = None


class Condition(NamedTuple):
    """A condition of a model: a class, a prompt, the content of a file or nothing.

    Attributes:
        cond: the condition as the network takes it; None for none.
        null: what the network takes as no condition, for classifier-free guidance; None if that
            is no argument at all, or if it was not asked for.
        label: the class, or None.
        prompt: the text, or None.
        distilled: the guidance weight that a distilled network takes as an input, or None.
        file: name of the file, or None.
        unread: the ends of prompt and negative that not all text encoders read; empty if they do.
    """

    cond: Cond = None
    null: Cond = None
    label: int | None = None
    prompt: str | None = None
    distilled: float | None = None
    file: str | None = None
    unread: tuple[str, ...] = ()


def find_condition(
    chosen: Model,
    name: str | None,
    prompt: str | None,
    *,
    file: Path | None = None,
    negative: Negative | None = None,
    distilled: float | None = None,
) -> Condition:
    """Find a class of a model, encode a prompt, or read a file.

    Args:
        chosen: the model.
        name: number or name of the class, as of `find_label`; None for no class.
        prompt: a text; None for no prompt.
        file: npz file of the condition, as of `read_condition`; None for none.
        negative: what classifier-free guidance leads away from; None if nothing is guided, and
            then there is no `null`. A file holds its own.
        distilled: the guidance weight that a distilled network takes as an input; None for that
            of the file or of its checkpoint.

    Raises:
        ValueError: as of `find_label`, `read_condition` and `encode_prompts`; if more than one of
            class, prompt and file is given, the network does not take what the file holds, or
            `distilled` is given twice or not taken.
    """
    if (name is not None) + (prompt is not None) + (file is not None) > 1:
        raise ValueError("a model is conditioned on a class, on a prompt or on a file: give one")
    if prompt is None and file is None and distilled is not None:
        raise ValueError(
            "the distilled guidance weight belongs to a prompt or a file, and there is none"
        )
    if file is not None:
        found = _from_file(chosen, file, distilled)
        return found._replace(null=None) if negative is None else _check_null(chosen, found)
    if prompt is None:
        label = find_label(chosen, name)
        return Condition(label, None, label)
    return next(encode_prompts(chosen, [prompt], negative=negative, distilled=distilled))


def encode_prompts(
    chosen: Model,
    prompts: Iterable[str],
    *,
    negative: Negative | None = None,
    distilled: float | None = None,
) -> Iterator[Condition]:
    """Encode prompts one after the other; the text encoders are loaded once.

    Args:
        chosen: the model.
        prompts: the texts.
        negative: as of `find_condition`, the same for all prompts.
        distilled: as of `find_condition`.

    Yields:
        A condition for each prompt.

    Raises:
        ValueError: if the model has no text encoder, a text is too long for it, or it takes no
            `distilled`.
    """
    encode = _open_encoder(chosen)
    if distilled is not None:
        encode = encode.with_distilled_guidance(distilled)
    null = None if negative is None else encode.negative(negative.text)
    against = "" if negative is None else encode.unread(negative.text or "")
    for prompt in prompts:
        cond, weight = encode(prompt), encode.distilled_guidance
        unread = tuple(filter(None, (encode.unread(prompt), against)))
        yield Condition(cond, null, None, prompt, weight, unread=unread)


def condition_model(chosen: Model, found: Condition) -> Model:
    """Return the conditional model, whose log-density is log p(x | class) or log p(x | prompt)."""
    field = condition(chosen.field, found.cond)
    return chosen._replace(
        field=field,
        label=found.label,
        prompt=found.prompt,
        distilled=found.distilled,
        file=found.file,
    )


def _open_encoder(chosen: Model) -> PromptEncoder:
    if not chosen.meta.text:
        raise ValueError(f"the model {chosen.name} takes no prompts: it has no text encoder")
    encode = load_prompt_encoder(chosen.name, dtype=chosen.dtype)
    # The model may have been given another resolution than its checkpoint, which XL is told.
    return replace(encode, condition=chosen.meta.text["condition"])


def _from_file(chosen: Model, file: Path, distilled: float | None) -> Condition:
    """Return the condition in a file, with the negative arrays that it may have as `null`."""
    stored = read_condition(file)
    weight = _distilled_weight(chosen, stored.cond, distilled, file)
    stored = StoredCondition(*(_with_guidance(cond, weight) for cond in stored))
    check_condition(chosen.field, stored.cond, f"what {file} holds")
    if stored.null is not None:
        check_condition(chosen.field, stored.null, f"the negative arrays in {file}")
    return Condition(stored.cond, stored.null, distilled=weight, file=file.name)


def _distilled_weight(chosen: Model, cond: Cond, given: float | None, file: Path) -> float | None:
    """Return the guidance weight of a condition in a file; None if the network takes none.

    Raises:
        ValueError: if it is given and not taken, not finite, or in the file as well.
    """
    spec = chosen.meta.model
    takes = isinstance(spec, ModelSpec) and spec.network.get("guidance_embeds", False)
    if given is not None:
        check_distilled_guidance(takes, given)
    if not takes:
        return None
    stored = cond.get(GUIDANCE) if isinstance(cond, Mapping) else None
    if stored is not None and given is not None:
        raise ValueError(
            f"the distilled guidance weight is given and {file} holds one as {GUIDANCE}, too: "
            "leave out one of them"
        )
    if stored is not None:  # the network checks its shape
        return float(stored) if jnp.ndim(stored) == 0 else None
    if given is not None:
        return given
    return chosen.meta.text.get("condition", {}).get("guidance", DISTILLED_GUIDANCE)


def _with_guidance(cond: Cond, weight: float | None) -> Cond:
    """Add the weight to a condition that lacks it."""
    if weight is None or not isinstance(cond, Mapping):
        return cond
    return {GUIDANCE: jnp.float32(weight), **cond}


def _check_null(chosen: Model, found: Condition) -> Condition:
    """Return a condition of a file, or raise an error if there is nothing to guide away from."""
    if found.null is None:
        try:
            check_condition(chosen.field, None, "nothing")
        except ValueError:
            raise ValueError(
                f"{found.file} has nothing to guide away from: add arrays with names that begin "
                "with negative., such as negative.encoder_hidden_states"
            ) from None
    return found
