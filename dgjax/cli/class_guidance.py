"""Options `--guidance` and `--guidance-model`: guide away from a second score."""

from typing import Annotated, NamedTuple

import typer

from dgjax.checkpoints.checkpoint import digest
from dgjax.checkpoints.opened import Model, find_label
from dgjax.cli.options import check_class, choose_model, takes_no_condition
from dgjax.guidance.classifier_free import Contrast, autoguidance, classifier_free_guidance
from dgjax.model.field import Field, condition

__all__ = ["GUIDANCE", "GUIDANCE_MODEL", "Weaker", "choose_weaker", "class_guides"]

GUIDANCE = Annotated[
    float,
    typer.Option(
        help="Guidance weight; 1 is none. Classifier-free guidance for --class, or autoguidance "
        "with --guidance-model."
    ),
]
GUIDANCE_MODEL = Annotated[
    str | None,
    typer.Option(
        help="Autoguidance: guide away from this weaker model of the same data, given as for "
        "--model. It takes the class too, if it has classes."
    ),
]


class Weaker(NamedTuple):
    """The weaker model of autoguidance.

    Attributes:
        field: the model, conditioned on the class if it has classes.
        sha256: digest of its weights and facts.
    """

    field: Field
    sha256: str


def choose_weaker(
    name: str | None, chosen: Model, label: int | None, weight: float
) -> Weaker | None:
    """Open the model named by the option --guidance-model.

    Args:
        name: the option; None for no model.
        chosen: the model that is sampled.
        label: the class that is sampled, or None.
        weight: the option --guidance.

    Raises:
        ValueError: if there is no such model, its samples are not comparable with those of
            `chosen`, or the weight is 1.
    """
    if name is None:
        return None
    if weight == 1:
        raise ValueError("--guidance-model needs a weight other than 1: add --guidance")
    weak = choose_model(name)
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
    given = None if label is None or _classes(weak) is None else str(label)
    field = condition(weak.field, find_label(check_class(weak, given), given))
    return Weaker(field, digest(weak.field, weak.meta, weak.autoencoder))


def class_guides(
    chosen: Model, weaker: Field | None, label: int | None, weight: float
) -> tuple[Contrast, ...]:
    """Return the guides away from a second score; none for weight 1.

    Args:
        chosen: the model that is sampled.
        weaker: field of `Weaker`, or None for classifier-free guidance.
        label: the class that is sampled, or None.
        weight: the option --guidance.

    Raises:
        ValueError: if there is neither a weaker model nor a class, the model has no prediction
            without a class, or the weight is not finite.
    """
    if weight == 1:
        return ()
    if weaker is not None:
        return (autoguidance(weight, weaker),)
    if label is None:
        raise ValueError(
            "--guidance strengthens a class: add --class or --guidance-model, or leave it out"
        )
    if not takes_no_condition(chosen.field):
        raise ValueError(
            f"--guidance needs a prediction without a class, and the model {chosen.name} has none: "
            "it was trained with a class for every image; leave --guidance out, or add "
            "--guidance-model (in Python, classifier_free_guidance takes a label that was trained "
            "as no class)"
        )
    return (classifier_free_guidance(weight, chosen.field),)


def _classes(model: Model) -> int | None:
    return model.meta.model.network.get("num_classes")
