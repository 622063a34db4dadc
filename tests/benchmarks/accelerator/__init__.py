"""Measures jaxvlm on the accelerator of this machine, beside transformers and torch; accelerator.md explains it."""
