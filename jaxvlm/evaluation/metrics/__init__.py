"""Metrics of benchmarks: values and truths -> numbers, equal to those of the published scorers. Without JAX."""
