"""Tekken: token ids to bytes to text, one token at a time.

Tokens are byte strings, and a character may be spread over several of them, so text leaves only when its last byte has
come. Only decoding is needed: the model is never given text.
"""

import base64
import binascii
import codecs
from collections.abc import Mapping
from typing import Any

from voxpipe.errors import ModelError

DEFAULT_N_SPECIAL = 1_000


class Tokenizer:
    """The bytes of each token.

    Args:
        n_special: ids below it are control tokens and stand for no text.
        token_bytes: bytes of the ids from `n_special` on.
    """

    def __init__(self, n_special: int, token_bytes: list[bytes]) -> None:
        self.n_special = n_special
        self._token_bytes = token_bytes

    @classmethod
    def from_json(cls, tekken: Mapping[str, Any], *, vocab_size: int) -> "Tokenizer":
        """Read the contents of a tekken.json for a model of `vocab_size` ids.

        Raises:
            ModelError: it is malformed, or too small for the model.
        """
        try:
            n_special = int(tekken["config"].get("default_num_special_tokens", DEFAULT_N_SPECIAL))
            entries = tekken["vocab"][: max(0, vocab_size - n_special)]
            token_bytes = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
        except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as exc:
            raise ModelError(f"tekken.json is malformed ({exc!r}); fetch it again") from exc
        if n_special + len(token_bytes) < vocab_size:
            raise ModelError(f"tekken.json has {n_special + len(token_bytes)} tokens; the model needs {vocab_size}")
        return cls(n_special, token_bytes)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, none for a control token."""
        return b"" if token < self.n_special else self._token_bytes[token - self.n_special]

    def decode(self, tokens: list[int]) -> str:
        """The text of a whole sequence."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")


class TextStream:
    """Incremental UTF-8: characters come out whole, never early; what is no UTF-8 at all becomes U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Take one token and return the text that it completes."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def is_text(self, token: int) -> bool:
        """Whether the token stands for bytes of text."""
        return bool(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """Return what an unfinished character comes to at the end of the stream."""
        return self._decoder.decode(b"", final=True)
