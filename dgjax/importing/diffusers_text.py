"""Import the text encoders and tokenizers of a pipeline of diffusers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from dgjax.checkpoints.prompts import PromptEncoder, build_text_encoder
from dgjax.checkpoints.tokenizer import Tokenizer
from dgjax.importing.clip_text import RENAMES, positions, read_clip_text
from dgjax.importing.model_folder import read_json
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.tokenizer_folder import read_tokenizer

__all__ = ["TextParts", "load_text", "read_text"]


class TextParts(NamedTuple):
    """The text parts of a pipeline, of which the configs are read and the weights are not.

    Attributes:
        spec: what `dgjax.checkpoints.Meta` states as `text`.
        folders: the folders of the encoders.
        tokenizers: one per encoder.
    """

    spec: dict[str, Any]
    folders: tuple[Path, ...]
    tokenizers: tuple[Tokenizer, ...]


def read_text(
    index: Mapping[str, Any],
    folders: Sequence[tuple[Path, Path]],
    network: Mapping[str, Any],
    size: tuple[int, int],
) -> TextParts:
    """Read what turns prompts into conditions of a network.

    Args:
        index: the content of model_index.json.
        folders: of each text encoder and its tokenizer.
        network: `network` of the `ModelSpec`, of kind "unet2d_condition".
        size: height and width of the pictures.

    Raises:
        ValueError: if something is missing, damaged or not supported, or the encoders do not fit
            the network.
    """
    encoders = [read_clip_text(read_json(encoder / "config.json")) for encoder, _ in folders]
    tokenizers = [
        read_tokenizer(tokenizer, spec["length"])
        for (_, tokenizer), spec in zip(folders, encoders, strict=True)
    ]
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
        raise ValueError(
            f"the text encoders give vectors of length {found} and the network takes "
            f"{network['cross_attention_dim']}: they do not belong together"
        )
    if added and pooled + 6 * network["added_size"] != network["added_inputs"]:
        raise ValueError(
            f"the last text encoder gives a pooled vector of length {pooled}, which does not fit "
            f"the network's {network['added_inputs']} added numbers"
        )
    facts = [{k: v for k, v in asdict(t).items() if k != "content"} for t in tokenizers]
    zero = bool(added and index.get("force_zeros_for_empty_prompt"))
    spec = {
        "condition": condition,
        "encoders": encoders,
        "tokenizers": facts,
        "zero_negative": zero,
    }
    return TextParts(spec, tuple(encoder for encoder, _ in folders), tuple(tokenizers))


def load_text(parts: TextParts, weights: Callable[[Path], Mapping[str, Any]]) -> PromptEncoder:
    """Load the weights of text encoders.

    Args:
        parts: what `read_text` returned.
        weights: opens the weights in a folder.

    Raises:
        ValueError: if the weights do not fit their config.
    """
    encoders = [
        load_state_dict(
            nnx.eval_shape(lambda spec=spec: build_text_encoder(spec)),
            weights(folder),
            f"the text encoder in {folder}",
            renames=RENAMES,
            constants=positions(spec),
        )
        for folder, spec in zip(parts.folders, parts.spec["encoders"], strict=True)
    ]
    spec = parts.spec
    return PromptEncoder(
        spec["condition"], parts.tokenizers, tuple(encoders), spec["zero_negative"]
    )
