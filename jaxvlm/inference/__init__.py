"""Inference: decoding with a key/value cache, conversations in and text out, and the sheet of samples."""
