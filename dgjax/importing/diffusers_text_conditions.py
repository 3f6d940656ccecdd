"""Find how a network of diffusers is conditioned on prompts, and check that the encoders fit it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dgjax.checkpoints.prompt_conditions import DISTILLED_GUIDANCE

__all__ = ["PROMPTED", "Conditioned", "Prompted"]


class Conditioned(NamedTuple):
    """Functions that make the condition of a network from the results of text encoders.

    Attributes:
        condition: `{"kind": name, ...arguments}`, as of `dgjax.checkpoints.prompts`.
        zero_negative: as of `dgjax.checkpoints.prompts.PromptEncoder`.
    """

    condition: dict[str, Any]
    zero_negative: bool = False


Encoders = Sequence[Mapping[str, Any]]
Size = tuple[int, int]


class Prompted(NamedTuple):
    """The text encoders of the networks of one kind.

    Attributes:
        encoders: the parts of a pipeline that are text encoders, and the kind of each.
        optional: those of them that may be missing while others are there.
        length: number of tokens that prompts of T5 are padded to, as in the pipelines of diffusers.
        condition: maps the content of model_index.json, the specifications of the encoders, the
            `network` of the `ModelSpec` and the size of the pictures to a `Conditioned`. Raises a
            ValueError if they do not fit.
    """

    encoders: Mapping[str, str]
    optional: tuple[str, ...]
    length: int
    condition: Callable[[Mapping[str, Any], Encoders, Mapping[str, Any], Size], Conditioned]


def _unet(
    index: Mapping[str, Any], encoders: Encoders, network: Mapping[str, Any], size: Size
) -> Conditioned:
    """Stable Diffusion 1, 2 and XL."""
    added = network["added_inputs"] is not None
    condition: dict[str, Any] = {"kind": "stable_diffusion"}
    found, pooled = encoders[0]["size"], None
    if added:
        condition = {"kind": "stable_diffusion_xl", "size": list(size)}
        found = sum(spec["size"] for spec in encoders)
        pooled = encoders[-1]["projection"]
    if added and (index.get("requires_aesthetics_score") or pooled is None):
        raise ValueError(
            "a refiner of Stable Diffusion XL, which is told an aesthetic score, is not supported: "
            "import the base model"
        )
    if not added and len(encoders) != 1:
        raise ValueError(
            f"the pipeline has {len(encoders)} text encoders and its network takes the vectors of "
            "one: they do not belong together"
        )
    if found != network["cross_attention_dim"]:
        raise _wrong_length(found, network["cross_attention_dim"])
    if added and pooled + 6 * network["added_size"] != network["added_inputs"]:
        raise ValueError(
            f"the last text encoder gives a pooled vector of length {pooled}, which does not fit "
            f"the network's {network['added_inputs']} added numbers"
        )
    return Conditioned(condition, bool(added and index.get("force_zeros_for_empty_prompt")))


def _sd3(
    index: Mapping[str, Any], encoders: Encoders, network: Mapping[str, Any], size: Size
) -> Conditioned:
    """Stable Diffusion 3: two encoders of CLIP, and T5 or nothing."""
    clip, t5 = encoders[:2], encoders[2:]
    for spec in clip:
        if spec["projection"] is None:
            raise ValueError(
                "a text encoder of CLIP has no projection, and the network takes projected vectors"
            )
    wanted = network["joint_attention_dim"]
    for found in (spec["size"] for spec in t5):
        if found != wanted:
            raise _wrong_length(found, wanted)
    if (found := sum(spec["size"] for spec in clip)) > wanted:
        raise _wrong_length(found, wanted)
    _check_pooled(sum(spec["projection"] for spec in clip), network["pooled_projection_dim"])
    return Conditioned(
        {"kind": "stable_diffusion_3", "size": wanted, "tokens": PROMPTED[network["kind"]].length}
    )


def _flux(
    index: Mapping[str, Any], encoders: Encoders, network: Mapping[str, Any], size: Size
) -> Conditioned:
    """Flux: one encoder of CLIP, and T5."""
    clip, t5 = encoders
    if t5["size"] != network["joint_attention_dim"]:
        raise _wrong_length(t5["size"], network["joint_attention_dim"])
    _check_pooled(clip["projection"] or clip["size"], network["pooled_projection_dim"])
    guidance = DISTILLED_GUIDANCE if network["guidance_embeds"] else None
    return Conditioned({"kind": "flux", "guidance": guidance})


def _wrong_length(found: int, wanted: int) -> ValueError:
    return ValueError(
        f"the text encoders give vectors of length {found} and the network takes {wanted}: they do "
        "not belong together"
    )


def _check_pooled(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(
            f"the text encoders give a pooled vector of length {found} and the network takes "
            f"{wanted}: they do not belong together"
        )


# By the kind of the network.
PROMPTED = {
    "unet2d_condition": Prompted(
        {"text_encoder": "clip", "text_encoder_2": "clip"},
        ("text_encoder", "text_encoder_2"),
        77,
        _unet,
    ),
    "sd3_transformer": Prompted(
        {"text_encoder": "clip", "text_encoder_2": "clip", "text_encoder_3": "t5"},
        ("text_encoder_3",),
        256,
        _sd3,
    ),
    "flux_transformer": Prompted({"text_encoder": "clip", "text_encoder_2": "t5"}, (), 512, _flux),
}
