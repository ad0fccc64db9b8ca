"""Bytes of tokens to text: characters come out whole, never early, never replaced, however tokens cut them."""

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import mistral_common
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.random_checkpoints import tekken_json
from voxpipe.errors import ModelError
from voxpipe.model.tokenizer import TextStream, Tokenizer

VOCABULARIES = ("tekken_240718.json", "tekken_240911.json")
N_SPECIAL = 1_000
VOCAB_SIZE = 131_072
TEXTS = {
    "chinese": "今天天气很好，我们去散步。龘靐齉𠮷",
    "arabic": "السَّلامُ عليكم ورحمة الله",
    "hindi": "नमस्ते, आप कैसे हैं? क्षत्रिय",
    "russian": "Съешь же ещё этих мягких французских булок",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 é\u0301",
    "mixed": "naïve 日本 ☕ и это",
}
ENDERS = "\N{REPLACEMENT CHARACTER}"


@cache
def real_vocabulary(name: str) -> tuple[Tokenizer, dict[bytes, int]]:
    """A Tekken of mistral-common, and the id of every byte string that the model can say."""
    path = Path(mistral_common.__file__).parent / "data" / name
    tekken: dict[str, Any] = json.loads(path.read_text("utf-8"))
    entries = tekken["vocab"][: VOCAB_SIZE - N_SPECIAL]
    ids = {base64.b64decode(entry["token_bytes"]): N_SPECIAL + rank for rank, entry in enumerate(entries)}
    return Tokenizer.from_json(tekken, vocab_size=VOCAB_SIZE), ids


def splits_everywhere(data: bytes, ids: dict[bytes, int]) -> list[list[int]]:
    """Token sequences for `data` that between them use every piece of it that the vocabulary has."""
    n = len(data)
    sequences = []
    for start in range(n):
        for stop in range(start + 1, min(n, start + 24) + 1):
            token = ids.get(data[start:stop])
            if token is not None and (stop - start > 1 or start == 0):
                single = [ids[bytes([byte])] for byte in data]
                sequences.append([*single[:start], token, *single[stop:]])
    return sequences


def greedy_split(data: bytes, ids: dict[bytes, int], longest: int) -> list[int]:
    tokens, start = [], 0
    while start < len(data):
        stop = next(stop for stop in range(min(len(data), start + longest), start, -1) if data[start:stop] in ids)
        tokens.append(ids[data[start:stop]])
        start = stop
    return tokens


def check(tokenizer: Tokenizer, tokens: list[int], text: str) -> None:
    """Push one by one: after each token exactly the characters whose last byte has come are out."""
    data = b"".join(map(tokenizer.token_bytes, tokens))
    assert data == text.encode()
    stream, got, n_bytes = TextStream(tokenizer), "", 0
    for token in tokens:
        got += stream.push(token)
        n_bytes += len(tokenizer.token_bytes(token))
        assert got == data[:n_bytes].decode("utf-8", "ignore")  # only an unfinished end is left out
    assert got + stream.finish() == text
    assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("language", TEXTS)
def test_every_split_of_a_real_vocabulary(vocabulary: str, language: str) -> None:
    tokenizer, ids = real_vocabulary(vocabulary)
    text = TEXTS[language]
    sequences = splits_everywhere(text.encode(), ids)
    sequences += [greedy_split(text.encode(), ids, longest) for longest in (1, 2, 3, 4, 7, 100)]
    for tokens in sequences:
        check(tokenizer, tokens, text)
    splits_characters = [tokens for tokens in sequences if any(is_partial(tokenizer.token_bytes(t)) for t in tokens)]
    assert len(splits_characters) > 10  # or this proves nothing


def is_partial(data: bytes) -> bool:
    return data.decode("utf-8", "ignore").encode() != data


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_any_text_in_a_real_vocabulary(text: str, lengths: list[int]) -> None:
    tokenizer, ids = real_vocabulary(VOCABULARIES[1])
    data, tokens, start, turn = text.encode("utf-8", "replace"), [], 0, 0
    while start < len(data):
        piece = greedy_split(data[start:], ids, lengths[turn % len(lengths)])[0]
        tokens.append(piece)
        start += len(tokenizer.token_bytes(piece))
        turn += 1
    check(tokenizer, tokens, data.decode())


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_layout_of_a_real_vocabulary(vocabulary: str) -> None:
    tokenizer, ids = real_vocabulary(vocabulary)
    assert [tokenizer.token_bytes(N_SPECIAL + byte) for byte in (0, 65, 255)] == [b"\0", b"A", b"\xff"]
    assert tokenizer.token_bytes(1_300) == b" \xd0"  # half a Cyrillic letter
    assert tokenizer.token_bytes(VOCAB_SIZE - 1) != b""
    assert len(ids) == VOCAB_SIZE - N_SPECIAL


# --- a small vocabulary ------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer() -> Tokenizer:
    """40 control tokens, the 256 bytes, four words."""
    return Tokenizer.from_json(tekken_json(300), vocab_size=300)


def byte_tokens(data: bytes) -> list[int]:
    return [40 + byte for byte in data]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_single_bytes(text: str) -> None:
    data = text.encode("utf-8", "replace")
    check(Tokenizer.from_json(tekken_json(300), vocab_size=300), byte_tokens(data), data.decode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30))
def test_any_bytes_come_to_what_the_whole_decodes_to(data: bytes) -> None:
    tokenizer = Tokenizer.from_json(tekken_json(300), vocab_size=300)
    stream = TextStream(tokenizer)
    got = "".join(map(stream.push, byte_tokens(data))) + stream.finish()
    assert got == data.decode("utf-8", "replace") == tokenizer.decode(byte_tokens(data))


def test_what_is_no_utf8_becomes_a_replacement_character(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    pushed = [stream.push(token) for token in byte_tokens(b"a\xffb\xe4\xbdc")]
    assert pushed == ["a", ENDERS, "b", "", "", ENDERS + "c"]
    assert stream.finish() == ""


def test_unfinished_character_at_the_end(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in byte_tokens("x€".encode()[:-1])] == ["x", "", ""]
    assert stream.finish() == ENDERS


def test_control_tokens_are_no_text_and_do_not_part_a_character(tokenizer: Tokenizer) -> None:
    """The model may put a blank between the halves of a character."""
    first, second = byte_tokens("é".encode())
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in (1, first, 32, 33, second, 39, 2)] == ["", "", "", "", "é", "", ""]
    assert all(tokenizer.token_bytes(token) == b"" for token in range(40))
    assert tokenizer.decode([1, 32, *byte_tokens(b"ok"), 2]) == "ok"


def test_words_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([296, 297, 299]) == " aa ab ad"


def test_thousand_control_tokens_unless_told_otherwise() -> None:
    tekken = tekken_json(1_300, n_special=1_000)
    del tekken["config"]["default_num_special_tokens"]
    tokenizer = Tokenizer.from_json(tekken, vocab_size=1_300)
    assert tokenizer.n_special == 1_000
    assert tokenizer.token_bytes(1_065) == b"A"


def test_entries_beyond_the_model_are_not_used() -> None:
    """Real vocabularies hold 150,000 entries, the model reaches 130,072 of them."""
    tokenizer = Tokenizer.from_json(tekken_json(400), vocab_size=300)
    assert tokenizer.token_bytes(299) == b" ad"
    with pytest.raises(IndexError):
        tokenizer.token_bytes(300)


def test_vocabulary_too_small() -> None:
    with pytest.raises(ModelError, match=r"^tekken.json has 300 tokens; the model needs 301$"):
        Tokenizer.from_json(tekken_json(300), vocab_size=301)


@pytest.mark.parametrize(
    "tekken",
    [
        {},
        {"config": {}},
        {"config": {}, "vocab": 3},
        {"config": None, "vocab": []},
        {"config": {"default_num_special_tokens": "many"}, "vocab": []},
        {"config": {}, "vocab": [{}] * 300},
        {"config": {"default_num_special_tokens": 0}, "vocab": [{"token_bytes": "!"}]},
        {"config": {"default_num_special_tokens": 0}, "vocab": [{"token_bytes": None}]},
    ],
    ids=str,
)
def test_malformed(tekken: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"^tekken.json is malformed \(.*\); fetch it again$"):
        Tokenizer.from_json(tekken, vocab_size=1_300)
