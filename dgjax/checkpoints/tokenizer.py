"""Turn prompts into the numbers that a text encoder reads."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Tokenizer", "import_tokenizers"]


def import_tokenizers() -> Any:
    """Return the library tokenizers.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise ValueError("prompts need the library tokenizers: pip install 'dgjax[text]'") from None
    return tokenizers


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of one text encoder.

    Attributes:
        content: the tokenizer as JSON, in the format of the library tokenizers.
        length: number of tokens that a prompt is padded to.
        begin: the token that begins a text, or None for tokenizers without one.
        end: the token that ends a text.
        pad: the token that fills up what is left.
    """

    content: str
    length: int
    begin: int | None
    end: int
    pad: int

    def __call__(self, prompt: str) -> np.ndarray:
        """Return the tokens of a prompt, begun, ended and padded.

        Args:
            prompt: any text; the empty one stands for no text.

        Returns:
            `length` whole numbers.

        Raises:
            ValueError: if the prompt has more tokens than there is room for, or the library
                tokenizers is missing. Nothing is cut off silently: the samples and their
                log-densities would be those of another prompt.
        """
        found = self._encode(prompt)
        if len(found.ids) > self._room:
            raise ValueError(
                f"the prompt has {len(found.ids)} tokens and this model reads {self._room}: "
                f"shorten it; what does not fit begins with {self.rest(prompt)[:40]!r}"
            )
        return self.beginning(prompt)

    def beginning(self, prompt: str) -> np.ndarray:
        """Return the tokens of as much of a prompt as there is room for.

        Args:
            prompt: any text.

        Returns:
            `length` whole numbers.

        Raises:
            ValueError: if the library tokenizers is missing.
        """
        begin = [] if self.begin is None else [self.begin]
        text = [*begin, *self._encode(prompt).ids[: self._room], self.end]
        tokens = np.full(self.length, self.pad, np.int32)
        tokens[: len(text)] = text
        return tokens

    def rest(self, prompt: str) -> str:
        """Return the end of a prompt for which there is no room; empty if all of it fits.

        Raises:
            ValueError: if the library tokenizers is missing.
        """
        found = self._encode(prompt)
        return "" if len(found.ids) <= self._room else prompt[found.offsets[self._room][0] :]

    @property
    def _room(self) -> int:
        """The most tokens of a prompt, without those that begin and end it."""
        return self.length - 1 - (self.begin is not None)

    def _encode(self, prompt: str) -> Any:
        return self._tokenizer.encode(prompt, add_special_tokens=False)

    @cached_property
    def _tokenizer(self) -> Any:
        library = import_tokenizers()
        try:
            made = library.Tokenizer.from_str(self.content)
        except Exception as error:  # the library raises bare exceptions
            first = str(error).splitlines()[0]
            raise ValueError(f"the tokenizer of this model cannot be read: {first}") from error
        made.no_padding()
        made.no_truncation()
        return made
