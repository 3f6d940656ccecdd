"""Turn prompts into conditions: tokenizers and text encoders of a model, and their files.

A text is specified in plain numbers and names, as checkpoints hold it:

    {"condition": {"kind": name, ...arguments},     a kind of `CONDITIONS`
     "encoders": [{"kind": name, ...arguments}],    a kind of `TEXT_ENCODERS` each
     "tokenizers": [{"length": ..., "begin": ..., "end": ..., "pad": ...}]}   one per encoder
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dgjax.checkpoints.arrays import WeightSharding, abstract_as, as_dtype
from dgjax.checkpoints.configuration import check_kind, check_names, check_types, construct
from dgjax.checkpoints.prompt_conditions import CONDITIONS
from dgjax.checkpoints.spec import TEXT_ENCODERS
from dgjax.checkpoints.tokenizer import Tokenizer
from dgjax.checkpoints.weights_file import read_weights, write_weights
from dgjax.networks.encoded_text import EncodedText
from dgjax.typing import Cond

__all__ = [
    "PromptEncoder",
    "build_text_encoder",
    "check_distilled_guidance",
    "check_text",
    "is_text_file",
    "read_prompt_encoder",
    "write_prompt_encoder",
]

ENCODER, TOKENIZER = "text_encoder", "tokenizer"  # names of the files, the second with _2
FILES = re.compile(rf"({ENCODER}(_\d+)?\.safetensors|{TOKENIZER}(_\d+)?\.json)")
# Parts of conditions that are no text: sizes of the picture, and the weight of guidance.
NO_TEXT = ("time_ids", "guidance")
FACTS = {f.name: f.type for f in fields(Tokenizer) if f.name != "content"}


@dataclass(frozen=True)
class PromptEncoder:
    """A function from prompts to conditions of a model.

    Attributes:
        condition: `{"kind": name, ...arguments}`, a kind of `CONDITIONS`.
        tokenizers: one per encoder.
        encoders: the text encoders.
        zero_negative: whether the model takes vectors of zeros as no text, not the empty prompt.
    """

    condition: Mapping[str, Any]
    tokenizers: tuple[Tokenizer, ...]
    encoders: tuple[Callable[..., EncodedText], ...]
    zero_negative: bool = False

    def __call__(self, prompt: str) -> Cond:
        """Encode a prompt as the condition of the model's network.

        The encoder with the most tokens reads all of the prompt. Those with fewer, as CLIP beside
        T5, read its beginning, as they do in the pipelines of diffusers; `unread` is the rest.

        Raises:
            ValueError: as of `Tokenizer`, if the prompt is too long for the longest; if a token is
                unknown to its encoder.
        """
        make = construct("text.condition", CONDITIONS, self.condition)
        tokens = [
            one(prompt) if one.length == self._longest else one.beginning(prompt)
            for one in self.tokenizers
        ]
        pairs = zip(self.encoders, tokens, strict=True)
        return make([encoder(jnp.asarray(one)) for encoder, one in pairs])

    def unread(self, prompt: str) -> str:
        """Return the end of a prompt that not all encoders read; empty if all read all of it.

        Raises:
            ValueError: as of `Tokenizer.rest`.
        """
        shorter = [t for t in self.tokenizers if t.length < self._longest]
        return max((t.rest(prompt) for t in shorter), key=len, default="")

    @property
    def _longest(self) -> int:
        return max(t.length for t in self.tokenizers)

    @property
    def distilled_guidance(self) -> float | None:
        """Weight of guidance that a distilled network takes as an input, or None for others."""
        return self.condition.get("guidance")

    def with_distilled_guidance(self, weight: float) -> "PromptEncoder":
        """Return the same encoder with another weight of guidance for a distilled network.

        A network that was trained on guided predictions takes their weight as an input, as Flux
        does. Each weight is a model of its own, with its own log-density.

        Args:
            weight: the weight.

        Raises:
            ValueError: if the network takes none, or the weight is not finite.
        """
        check_distilled_guidance(self.distilled_guidance is not None, weight)
        return replace(self, condition={**self.condition, "guidance": float(weight)})

    def negative(self, prompt: str | None = None) -> Cond:
        """Encode what classifier-free guidance leads away from.

        Args:
            prompt: a text; None for no text, which is the empty prompt or, where the model was
                trained so, zeros in place of all vectors of a text.

        Raises:
            ValueError: as of a call.
        """
        cond = self(prompt or "")
        if prompt is not None or not self.zero_negative:
            return cond
        keep = lambda path: getattr(path[-1], "key", None) in NO_TEXT
        return jax.tree.map_with_path(
            lambda path, leaf: leaf if keep(path) else jnp.zeros_like(leaf), cond
        )


def check_distilled_guidance(takes: bool, weight: float) -> None:
    """Check a weight of guidance that a distilled network is to take as an input.

    Args:
        takes: whether the network takes one.
        weight: the weight.

    Raises:
        ValueError: if the network takes none, or the weight is not finite.
    """
    if not takes:
        raise ValueError(
            "this model takes no guidance weight as an input, as it is not distilled from guided "
            "predictions: leave it out, or use classifier-free guidance"
        )
    if not math.isfinite(weight):
        raise ValueError(f"the distilled guidance weight must be finite, got {weight}")


def check_text(values: Any) -> None:
    """Check that `values` specify tokenizers and text encoders, or are empty for none.

    Raises:
        ValueError: if a kind, a name or a number is unknown, missing or wrong.
    """
    if values == {}:
        return
    check_names(
        "text",
        values,
        ("condition", "encoders", "tokenizers", "zero_negative"),
        required=True,
    )
    check_kind("text.condition", CONDITIONS, values["condition"], ())
    for name in ("encoders", "tokenizers"):
        if not isinstance(values[name], list | tuple):
            raise ValueError(f"text: {name} must be a list, got {values[name]!r}")
    if not len(values["encoders"]) == len(values["tokenizers"]) > 0:
        raise ValueError("text: there must be a tokenizer for each encoder")
    for one in values["encoders"]:
        check_kind("text.encoders", TEXT_ENCODERS, one, ("rngs",))
    for one in values["tokenizers"]:
        check_names("text.tokenizers", one, FACTS, required=True)
        check_types("text.tokenizers", one, FACTS)


def is_text_file(name: str) -> bool:
    """Return whether a file of a checkpoint is of its text encoders or tokenizers."""
    return FILES.fullmatch(name) is not None


def write_prompt_encoder(folder: Path, prompts: PromptEncoder, dtype: Any) -> None:
    """Write the files of tokenizers and text encoders.

    Args:
        folder: of the checkpoint.
        prompts: the tokenizers and encoders.
        dtype: of the weights, as of `dgjax.checkpoints.save`.
    """
    for i, (tokenizer, encoder) in enumerate(
        zip(prompts.tokenizers, prompts.encoders, strict=True)
    ):
        write_weights(folder / _file(ENCODER, i, "safetensors"), as_dtype(encoder, dtype))
        (folder / _file(TOKENIZER, i, "json")).write_text(tokenizer.content)


def read_prompt_encoder(
    folder: Path, values: Mapping[str, Any], sharding: WeightSharding | None, dtype: Any
) -> PromptEncoder:
    """Read the files of tokenizers and text encoders.

    Args:
        folder: of the checkpoint.
        values: the specification, as `check_text` accepts it.
        sharding: of the weights, as of `dgjax.checkpoints.load`.
        dtype: of the weights in memory, as of `dgjax.checkpoints.load`.

    Raises:
        ValueError: if a file is missing, damaged or does not fit `values`.
    """
    encoders = []
    for i, spec in enumerate(values["encoders"]):
        file = folder / _file(ENCODER, i, "safetensors")
        like = abstract_as(nnx.eval_shape(lambda spec=spec: build_text_encoder(spec)), dtype)
        encoders.append(read_weights(file, like, f"the text encoder in {folder}", sharding))
    tokenizers = []
    for i, facts in enumerate(values["tokenizers"]):
        file = folder / _file(TOKENIZER, i, "json")
        try:
            tokenizers.append(Tokenizer(file.read_text(), **facts))
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    return PromptEncoder(
        values["condition"], tuple(tokenizers), tuple(encoders), values["zero_negative"]
    )


def build_text_encoder(values: Mapping[str, Any], seed: int = 0) -> Callable[..., EncodedText]:
    """Build a text encoder with fresh weights.

    Args:
        values: `{"kind": name, ...arguments}`, a kind of `TEXT_ENCODERS`.
        seed: of the weights.

    Raises:
        ValueError: if `values` specify no text encoder, or the constructor refuses its arguments.
    """
    return construct("text.encoders", TEXT_ENCODERS, values, rngs=nnx.Rngs(seed))


def _file(stem: str, i: int, ending: str) -> str:
    """Return the name of a file of encoder i, in the manner of pipelines of diffusers."""
    return f"{stem}.{ending}" if i == 0 else f"{stem}_{i + 1}.{ending}"
