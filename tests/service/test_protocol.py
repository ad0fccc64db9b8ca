"""The header line and the chunks, against whatever a client may send."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxpipe.errors import UsageError
from voxpipe.service.protocol import MAGIC, ChunkReader, Header, as_chunk


@given(
    st.builds(
        Header,
        format=st.text(),
        rate=st.integers(),
        delay_ms=st.one_of(st.none(), st.integers()),
        segment_pause_ms=st.one_of(st.none(), st.integers(80, 3_600_000)),
        heartbeat_s=st.one_of(st.none(), st.floats(0.01, 1e5)),
        realtime=st.booleans(),
        max_lag_s=st.one_of(st.none(), st.floats(1, 3600)),
        logprobs=st.booleans(),
        model=st.one_of(st.none(), st.text()),
        name=st.one_of(st.none(), st.text()),
        framing=st.sampled_from(["raw", "chunks"]),
    )
)
def test_what_is_encoded_is_decoded(header: Header) -> None:
    line = header.encode()
    assert line.startswith(MAGIC)
    assert line.count(b"\n") == 1
    assert Header.decode(line.rstrip(b"\n")) == header


@pytest.mark.parametrize("name", ["\udcff", "\ud800 \udc00", "é\n", "\u2028"])
def test_a_name_that_is_not_utf_8_can_be_said(name: str) -> None:
    line = Header(name=name).encode()
    assert line.count(b"\n") == 1
    assert Header.decode(line).name == name


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_usage_error(junk: bytes) -> None:
    try:
        Header.decode(MAGIC + junk)
    except UsageError:
        return


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["rate", "format", "name", "heartbeat_s", "framing", "x"]), json_values))
def test_any_json_is_a_header_or_a_usage_error(value: object) -> None:
    try:
        header = Header.decode(MAGIC + json.dumps(value).encode())
    except UsageError:
        return
    assert isinstance(header.rate, int)
    assert isinstance(header.name, str | None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"rate": "48000"}', "the header's 'rate' is '48000', which is not a number"),
        ('{"name": 7}', "the header's 'name' is 7, which is not a text"),
        ('{"channels": true}', "the header's 'channels' is True, which is not a number"),
        ('{"speed": 1}', "the header's key 'speed' is unknown; known are format, rate, "),
        ("[]", "the header is not a JSON object; send for example: VOXPIPE/1"),
        ("{", "the header is not JSON ("),
        ('{"framing": "ogg"}', "the header's 'framing' is 'ogg'; it can be 'raw' or 'chunks'"),
        ('{"segment_pause_ms": 10}', "the header's 'segment_pause_ms' is 10; it can be 80 to 3600000"),
        (f'{{"segment_pause_ms": 1{"0" * 400}}}', "the header's 'segment_pause_ms' is 10000"),
        ('{"logprobs": "yes"}', "the header's 'logprobs' is 'yes', which is not true or false"),
        ('{"realtime": 1}', "the header's 'realtime' is 1, which is not true or false"),
        ('{"max_lag_s": 0.1}', "the header's 'max_lag_s' is 0.1; it can be 1 to 3600"),
        ('{"heartbeat_s": 0}', "the header's 'heartbeat_s' is 0; it must be more than 0"),
    ],
)
def test_a_wrong_header_is_told_what_is_wrong(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Header.decode(MAGIC + line.encode())
    assert str(caught.value).startswith(message)


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(1, 50), min_size=1))
def test_chunks_come_out_as_they_went_in(chunks: list[bytes], sizes: list[int]) -> None:
    data = b"".join(map(as_chunk, chunks))
    reader, received = ChunkReader(), []
    position = n = 0
    while position < len(data):
        size = sizes[n % len(sizes)]
        received += reader.push(data[position : position + size])
        position += size
        n += 1
    assert received == chunks


def test_a_chunk_of_four_gigabytes_is_refused() -> None:
    with pytest.raises(UsageError, match="a chunk of 4294967295 bytes is too long"):
        list(ChunkReader().push(b"\xff" * 4))
