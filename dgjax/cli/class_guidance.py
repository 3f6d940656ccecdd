"""Options `--guidance...` and `--negative`: guide away from a second score."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import typer

from dgjax.checkpoints.checkpoint import digest
from dgjax.checkpoints.condition_file import check_condition
from dgjax.checkpoints.conditions import Condition
from dgjax.checkpoints.opened import Model, find_label
from dgjax.cli.options import check_class, choose_model, takes_no_condition
from dgjax.cli.prompt_file import encode_all
from dgjax.guidance.classifier_free import Contrast, autoguidance, classifier_free_guidance
from dgjax.model.field import Field
from dgjax.typing import Cond

__all__ = [
    "GUIDANCE",
    "GUIDANCE_MODEL",
    "GUIDANCE_WINDOW",
    "NEGATIVE",
    "NO_WINDOW",
    "Weaker",
    "check_guidance_window",
    "check_negative",
    "class_guides",
    "open_weaker",
    "weaker_conditions",
]

GUIDANCE = Annotated[
    float,
    typer.Option(
        help="Guidance weight; 1 is none. Classifier-free guidance for --class or --prompt, or "
        "autoguidance with --guidance-model."
    ),
]
NO_WINDOW = (-float("inf"), float("inf"))
GUIDANCE_WINDOW = Annotated[
    tuple[float, float],
    typer.Option(
        help="Log-SNRs LOW,HIGH between which --guidance acts, such as -3,3. An evaluation outside "
        "costs one pass of the network instead of two."
    ),
]
NEGATIVE = Annotated[
    str | None,
    typer.Option(
        help="Text that --guidance leads away from, for --prompt.", show_default="no text"
    ),
]
GUIDANCE_MODEL = Annotated[
    str | None,
    typer.Option(
        help="Autoguidance: guide away from this weaker model of the same data, given as for "
        "--model. It takes the class or the prompt too, if it has classes or text encoders."
    ),
]


class Weaker(NamedTuple):
    """The weaker model of autoguidance.

    Attributes:
        model: the model, without a condition.
        sha256: digest of its weights and facts.
    """

    model: Model
    sha256: str


def check_negative(
    negative: str | None, prompt: str | None, weight: float, name: str | None
) -> None:
    """Check that the option --negative has an effect.

    Args:
        negative: the option.
        prompt: the option --prompt.
        weight: the option --guidance.
        name: the option --guidance-model.

    Raises:
        ValueError: if it has none.
    """
    if negative is not None and (prompt is None or weight == 1 or name is not None):
        raise ValueError(
            "--negative is what --guidance leads away from: it needs --prompt and a --guidance "
            "other than 1, and no --guidance-model"
        )


def check_guidance_window(limits: tuple[float, float], weight: float) -> None:
    """Check that the option --guidance-window has an effect.

    Args:
        limits: the option.
        weight: the option --guidance.

    Raises:
        ValueError: if it has none.
    """
    if limits != NO_WINDOW and weight == 1:
        raise ValueError("--guidance-window needs a --guidance other than 1")


def open_weaker(
    name: str | None,
    chosen: Model,
    weight: float,
    size: tuple[int | None, int | None] = (None, None),
) -> Weaker | None:
    """Open the model named by the option --guidance-model.

    Args:
        name: the option; None for no model.
        chosen: the model that is sampled; the other has weights of the same dtype.
        weight: the option --guidance.
        size: the options --height and --width.

    Raises:
        ValueError: if there is no such model, its samples are not comparable with those of
            `chosen`, or the weight is 1.
    """
    if name is None:
        return None
    if weight == 1:
        raise ValueError("--guidance-model needs a weight other than 1: add --guidance")
    weak = choose_model(name, *size, dtype=chosen.dtype)
    for what, one, other in (
        ("shape", chosen.meta.shape, weak.meta.shape),
        ("range of pixels", chosen.meta.data_range, weak.meta.data_range),
        ("autoencoder", chosen.meta.autoencoder, weak.meta.autoencoder),
        ("number of classes", *(_classes(m) or _classes(chosen) for m in (chosen, weak))),
    ):
        if one != other:
            raise ValueError(
                f"the models {chosen.name} and {name} differ in their {what} ({one} and {other}): "
                "choose a --guidance-model of the same data"
            )
    return Weaker(weak, digest(weak.field, weak.meta, weak.autoencoder))


def weaker_conditions(weak: Model, given: Sequence[Condition]) -> list[Cond]:
    """Return what the weaker model of autoguidance is conditioned on.

    Args:
        weak: the model.
        given: what the sampled model is conditioned on, all of them of one kind. The weaker one
            takes the same class, prompts or file, if it takes such conditions at all.

    Raises:
        ValueError: if it needs another condition, or a prompt is too long for it.
    """
    first = given[0]
    if first.file is not None:
        check_condition(weak.field, first.cond, f"what {first.file} holds")
        return [one.cond for one in given]
    if first.prompt is not None and weak.meta.text:
        takes = weak.meta.text["condition"].get("guidance") is not None
        prompts = [one.prompt or "" for one in given]
        distilled = first.distilled if takes else None
        return [one.cond for one in encode_all(weak, prompts, distilled=distilled)]
    label = None if first.label is None or _classes(weak) is None else str(first.label)
    check_class(weak, label)
    return [find_label(weak, label)] * len(given)


def class_guides(
    chosen: Model,
    weaker: Field | None,
    given: Condition,
    weight: float,
    limits: tuple[float, float] = NO_WINDOW,
) -> tuple[Contrast, ...]:
    """Return the guides away from a second score; none for weight 1.

    Args:
        chosen: the model that is sampled.
        weaker: the weaker model of autoguidance with its condition, or None for classifier-free
            guidance.
        given: what the sampled model is conditioned on.
        weight: the option --guidance.
        limits: the option --guidance-window.

    Raises:
        ValueError: if there is neither a weaker model nor a condition, the model has no prediction
            without a class, the weight is not finite, or the window is empty.
    """
    if weight == 1:
        return ()
    low, high = limits
    if weaker is not None:
        return (autoguidance(weight, weaker, low=low, high=high),)
    if given.cond is None:
        what = "a prompt: add --prompt, --cond" if chosen.meta.text else "a class: add --class"
        raise ValueError(f"--guidance strengthens {what} or --guidance-model, or leave it out")
    if given.null is None and not takes_no_condition(chosen.field):
        raise ValueError(
            f"--guidance needs a prediction without a class, and the model {chosen.name} has none: "
            "it was trained with a class for every image; leave --guidance out, or add "
            "--guidance-model (in Python, classifier_free_guidance takes a label that was trained "
            "as no class)"
        )
    return (classifier_free_guidance(weight, chosen.field, null=given.null, low=low, high=high),)


def _classes(model: Model) -> int | None:
    return model.meta.model.network.get("num_classes")
