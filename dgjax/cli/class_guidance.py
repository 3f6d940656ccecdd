"""Options `--guidance...` and `--negative`: guide away from a second score."""

from typing import Annotated, NamedTuple

import typer

from dgjax.checkpoints.checkpoint import digest
from dgjax.checkpoints.condition_file import check_condition
from dgjax.checkpoints.conditions import Condition, condition_model, find_condition
from dgjax.checkpoints.opened import Model
from dgjax.cli.options import check_class, choose_model, takes_no_condition
from dgjax.guidance.classifier_free import Contrast, autoguidance, classifier_free_guidance
from dgjax.model.field import Field

__all__ = [
    "GUIDANCE",
    "GUIDANCE_MODEL",
    "GUIDANCE_WINDOW",
    "NEGATIVE",
    "NO_WINDOW",
    "Weaker",
    "check_guidance_window",
    "check_negative",
    "choose_weaker",
    "class_guides",
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
        field: the model, conditioned on the class or the prompt if it takes them.
        sha256: digest of its weights and facts.
    """

    field: Field
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


def choose_weaker(
    name: str | None,
    chosen: Model,
    given: Condition,
    weight: float,
    size: tuple[int | None, int | None] = (None, None),
) -> Weaker | None:
    """Open the model named by the option --guidance-model.

    Args:
        name: the option; None for no model.
        chosen: the model that is sampled.
        given: what the sampled model is conditioned on.
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
    weak = choose_model(name, *size)
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
    weights = digest(weak.field, weak.meta, weak.autoencoder)
    if given.file is not None:
        check_condition(weak.field, given.cond, f"what {given.file} holds")
        return Weaker(condition_model(weak, given).field, weights)
    label = None if given.label is None or _classes(weak) is None else str(given.label)
    prompt = given.prompt if weak.meta.text else None
    if prompt is None:
        check_class(weak, label)
    takes = weak.meta.text.get("condition", {}).get("guidance") is not None
    distilled = given.distilled if prompt is not None and takes else None
    field = condition_model(weak, find_condition(weak, label, prompt, distilled=distilled)).field
    return Weaker(field, weights)


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
        weaker: field of `Weaker`, or None for classifier-free guidance.
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
