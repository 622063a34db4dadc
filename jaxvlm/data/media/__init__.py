"""Decoding and resizing of image files."""
