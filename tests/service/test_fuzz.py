"""The fuzzer's targets, briefly: its seeds, and what hypothesis makes of them. `fuzz.py` runs them by the million."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.fuzz import SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)
        for stop in range(len(seed)) if len(seed) < 300 else ():
            TARGETS[name](seed[:stop])


def mutated(seed: bytes, number: int) -> bytes:
    """`seed` with a few changes that follow from `number`."""
    chance = random.Random(number)
    data = bytearray(seed)
    for _ in range(chance.randint(1, 6)):
        first = chance.randint(0, len(data))
        stop = min(len(data), first + chance.choice((0, 1, 1, 2, 4, 8)))
        data[first:stop] = chance.choice(
            (b"", b"\0", b"\xff\xff\xff\xff", chance.randbytes(4), b'"', b"[[", bytes(seed[first:stop] * 2))
        )
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=400, deadline=None)
@given(number=st.integers(0, 2**64 - 1))
def test_mutated_seeds(name: str, number: int) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](mutated(seed, number))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=600))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)
