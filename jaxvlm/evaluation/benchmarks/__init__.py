"""Benchmarks, a file each: how its files are read, its questions asked, the answers parsed and scored. Without JAX."""
