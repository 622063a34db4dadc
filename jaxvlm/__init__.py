"""jaxvlm: LLaVA-style vision-language models on TPUs, in JAX."""
