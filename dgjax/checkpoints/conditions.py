"""Choose what a model is conditioned on: one of its classes, or a prompt."""

from typing import NamedTuple

from dgjax.checkpoints.checkpoint import load_prompt_encoder
from dgjax.checkpoints.opened import Model, find_label
from dgjax.model.field import condition
from dgjax.typing import Cond

__all__ = ["Condition", "condition_model", "find_condition"]


class Condition(NamedTuple):
    """A condition of a model: a class, a prompt or nothing.

    Attributes:
        cond: the condition as the network takes it; None for none.
        null: what the network takes as no condition, for classifier-free guidance; None if that
            is no argument at all, or if it was not asked for.
        label: the class, or None.
        prompt: the text, or None.
        distilled: the guidance weight that a distilled network takes as an input, or None.
    """

    cond: Cond = None
    null: Cond = None
    label: int | None = None
    prompt: str | None = None
    distilled: float | None = None


def find_condition(
    chosen: Model,
    name: str | None,
    prompt: str | None,
    *,
    negative: str | None = None,
    guided: bool = False,
    distilled: float | None = None,
) -> Condition:
    """Find a class of a model, or encode a prompt.

    Args:
        chosen: the model.
        name: number or name of the class, as of `find_label`; None for no class.
        prompt: a text; None for no prompt.
        negative: the text that guidance leads away from; None for no text.
        guided: whether classifier-free guidance needs `null`.
        distilled: the guidance weight that a distilled network takes as an input; None for that
            of its checkpoint.

    Raises:
        ValueError: as of `find_label`; if there are both a class and a prompt, the model has no
            text encoder, a text is too long for it, or it takes no `distilled`.
    """
    if prompt is None:
        if distilled is not None:
            raise ValueError("the distilled guidance weight belongs to a prompt, and there is none")
        label = find_label(chosen, name)
        return Condition(label, None, label)
    if name is not None:
        raise ValueError("a model is conditioned on a class or on a prompt, not on both")
    if not chosen.meta.text:
        raise ValueError(f"the model {chosen.name} takes no prompts: it has no text encoder")
    encode = load_prompt_encoder(chosen.name)
    if distilled is not None:
        encode = encode.with_distilled_guidance(distilled)
    null = encode.negative(negative) if guided else None
    return Condition(encode(prompt), null, None, prompt, encode.distilled_guidance)


def condition_model(chosen: Model, found: Condition) -> Model:
    """Return the conditional model, whose log-density is log p(x | class) or log p(x | prompt)."""
    field = condition(chosen.field, found.cond)
    return chosen._replace(
        field=field, label=found.label, prompt=found.prompt, distilled=found.distilled
    )
