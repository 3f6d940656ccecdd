"""Import the text encoders and tokenizers of a pipeline of diffusers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from dgjax.checkpoints.prompts import PromptEncoder, build_text_encoder
from dgjax.checkpoints.tokenizer import Tokenizer
from dgjax.importing.clip_text import RENAMES, positions, read_clip_text
from dgjax.importing.diffusers_text_conditions import PROMPTED
from dgjax.importing.model_folder import read_json
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.t5_text import T5_RENAMES, read_t5_text, tied
from dgjax.importing.tokenizer_folder import CLIP, T5, read_tokenizer

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
        network: `network` of the `ModelSpec`, of a kind of `PROMPTED`.
        size: height and width of the pictures.

    Raises:
        ValueError: if something is missing, damaged or not supported, or the encoders do not fit
            the network.
    """
    prompted = PROMPTED[network["kind"]]
    encoders, tokenizers = [], []
    for folder, tokenizer in folders:
        config = read_json(folder / "config.json")
        if prompted.encoders[folder.name] == "clip":
            spec = read_clip_text(config)
            tokenizers.append(read_tokenizer(tokenizer, spec["length"], CLIP))
        else:
            spec = read_t5_text(config)
            tokenizers.append(read_tokenizer(tokenizer, prompted.length, T5))
        encoders.append(spec)
    made = prompted.condition(index, encoders, network, size)
    spec = {
        "condition": made.condition,
        "encoders": encoders,
        "tokenizers": [{k: v for k, v in asdict(t).items() if k != "content"} for t in tokenizers],
        "zero_negative": made.zero_negative,
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
        _load(folder, spec, weights(folder))
        for folder, spec in zip(parts.folders, parts.spec["encoders"], strict=True)
    ]
    spec = parts.spec
    return PromptEncoder(
        spec["condition"], parts.tokenizers, tuple(encoders), spec["zero_negative"]
    )


def _load(folder: Path, spec: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    """Return a text encoder with its weights."""
    clip = spec["kind"] == "clip_text"
    return load_state_dict(
        nnx.eval_shape(lambda: build_text_encoder(spec)),
        arrays,
        f"the text encoder in {folder}",
        renames=RENAMES if clip else T5_RENAMES,
        constants=positions(spec) if clip else tied(arrays),
    )
