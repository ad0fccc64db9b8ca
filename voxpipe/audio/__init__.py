"""Bytes and files -> mono float32 samples at 16 kHz."""
