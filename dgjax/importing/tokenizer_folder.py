"""Read the tokenizer of CLIP or of T5 from a folder that the library transformers saved."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dgjax.checkpoints.tokenizer import Tokenizer, import_tokenizers
from dgjax.importing.model_folder import read_json

__all__ = ["CLIP", "T5", "Family", "read_tokenizer"]

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
# Words, numbers and other signs of CLIP (arXiv 2103.00020).
PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Family(NamedTuple):
    """The tokenizers of one class of transformers.

    Attributes:
        kind: the class.
        tokens: the special tokens, unless a folder names others. Where there is a "bos_token",
            it begins each text.
        assemble: maps a folder without tokenizer.json and its special tokens to the content of
            that file.
    """

    kind: str
    tokens: Mapping[str, str]
    assemble: Callable[[Path, Mapping[str, str]], str]


def read_tokenizer(folder: Path, length: int, family: Family) -> Tokenizer:
    """Read a tokenizer.

    Args:
        folder: folder of a tokenizer, with tokenizer.json; for CLIP, with vocab.json and
            merges.txt instead.
        length: most tokens that its text encoder takes.
        family: `CLIP` or `T5`.

    Returns:
        The tokenizer; prompts are padded to `model_max_length` of its config, at most `length`.

    Raises:
        ValueError: if a file is missing or damaged, the tokenizer is of another class, a special
            token is unknown to it, or the library tokenizers is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} of a tokenizer")
    config = _optional(folder / "tokenizer_config.json")
    kind = str(config.get("tokenizer_class", family.kind)).removesuffix("Fast")
    if kind != family.kind:
        raise ValueError(
            f"the tokenizer {kind} in {folder} is not supported; supported: {family.kind}"
        )
    names = _special_tokens(folder, config, family.tokens)
    if (folder / "tokenizer.json").is_file():
        content = json.dumps(read_json(folder / "tokenizer.json"))
    else:
        content = family.assemble(folder, names)
    library = import_tokenizers()
    try:
        made = library.Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare exceptions
        first = str(error).splitlines()[0]
        raise ValueError(f"the tokenizer in {folder} cannot be read: {first}") from error
    ids = {what: made.token_to_id(names[what]) for what in family.tokens}
    for what, number in ids.items():
        if number is None:
            raise ValueError(f"the tokenizer in {folder} has no token {names[what]!r} ({what})")
    # They are whole wherever they come in a text. With the padding "!" so is this sign.
    special = sorted(set(names.values()))
    made.add_special_tokens([library.AddedToken(token, special=True) for token in special])
    stated = config.get("model_max_length")
    return Tokenizer(
        made.to_str(),
        length=min(stated, length) if isinstance(stated, int) else length,
        begin=ids.get("bos_token"),
        end=ids["eos_token"],
        pad=ids["pad_token"],
    )


def _special_tokens(
    folder: Path, config: Mapping[str, Any], defaults: Mapping[str, str]
) -> dict[str, str]:
    """Return the special tokens; in older folders special_tokens_map.json has the last word."""
    older = "added_tokens_decoder" not in config
    last = _optional(folder / "special_tokens_map.json") if older else {}
    found = {}
    for what, default in defaults.items():
        token = last.get(what, config.get(what)) or default
        found[what] = token["content"] if isinstance(token, dict) else str(token)
    return found


def _assemble_clip(folder: Path, names: Mapping[str, str]) -> str:
    """Make a tokenizer of vocabulary and merges, as JSON."""
    library = import_tokenizers()
    vocabulary = read_json(folder / "vocab.json")
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(
            f"{folder} has neither tokenizer.json nor merges.txt: {error.strerror or error}"
        ) from error
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    try:
        made = library.Tokenizer(
            library.models.BPE(
                vocab=vocabulary,
                merges=merges,
                continuing_subword_prefix="",
                end_of_word_suffix="</w>",
                unk_token=names["unk_token"],
            )
        )
    except Exception as error:  # the library raises bare exceptions
        first = str(error).splitlines()[0]
        raise ValueError(f"the tokenizer in {folder} cannot be read: {first}") from error
    normal, before = library.normalizers, library.pre_tokenizers
    made.normalizer = normal.Sequence(
        [normal.NFC(), normal.Replace(library.Regex(r"\s+"), " "), normal.Lowercase()]
    )
    made.pre_tokenizer = before.Sequence(
        [
            before.Split(library.Regex(PIECES), behavior="removed", invert=True),
            before.ByteLevel(add_prefix_space=False),
        ]
    )
    return made.to_str()


def _assemble_t5(folder: Path, names: Mapping[str, str]) -> str:
    """Refuse a tokenizer of T5 that is a model of sentencepiece alone."""
    raise ValueError(
        f"{folder} has no tokenizer.json, and spiece.model is not read: make it with "
        f"transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained("
        f"{str(folder)!r}), which needs sentencepiece"
    )


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


CLIP = Family(
    "CLIPTokenizer",
    {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END},
    _assemble_clip,
)
T5 = Family(
    "T5Tokenizer",
    {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    _assemble_t5,
)
