"""jaxvlm: LLaVA-style vision-language models on TPUs, in JAX."""

import os

# Its advice is to install PyTorch, for models that are not used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
