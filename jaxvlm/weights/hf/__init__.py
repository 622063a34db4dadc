"""Codecs of the parts that families share: how Hugging Face writes an encoder or a decoder."""
