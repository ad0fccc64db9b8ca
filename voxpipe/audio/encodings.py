"""The names of raw encodings, apart from what reads them: a command line that lists them needs no numpy."""

AUTO = "auto"  # a WAV header is obeyed, anything else is s16le

# encoding -> numpy type of one sample; s24 has none and is widened to s32 first
DTYPES = {
    "s16le": "<i2",
    "s16be": ">i2",
    "s24le": "<i4",
    "s24be": ">i4",
    "s32le": "<i4",
    "s32be": ">i4",
    "f32le": "<f4",
    "f32be": ">f4",
    "f64le": "<f8",
    "f64be": ">f8",
    "u8": "u1",
    "mulaw": "u1",
    "alaw": "u1",
}
ENCODINGS = tuple(DTYPES)
