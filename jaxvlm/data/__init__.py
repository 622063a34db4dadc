"""From files to packed rows. Imports neither jax nor the models."""
