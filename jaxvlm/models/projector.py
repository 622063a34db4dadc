"""The projector: from vision features to token embeddings.

Source: LLaVA-1.5 (arXiv:2310.03744), `multimodal_projector/builder.py`: "linear", or "mlpNx_gelu" of N linear layers
with exact GELUs between them.

Axis letters:
  B rows   P features   E embed of the vision encoder or of a hidden layer   D embed of the decoder
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvlm.batch import Array
from jaxvlm.config import ProjectorConfig
from jaxvlm.errors import UserError
from jaxvlm.models.layers import Einsum


def projector_depth(kind: str) -> int:
    """Number of linear layers of a projector.

    Raises:
      UserError: `kind` is not the name of one.
    """
    if kind == "linear":
        return 1
    if match := re.fullmatch(r"mlp([1-9]\d*)x_gelu", kind):
        return int(match[1])
    raise UserError(f'config.model.projector.kind = "{kind}", expected "linear", "mlp2x_gelu", "mlp3x_gelu", ...')


class Projector(nnx.Module):
    """Linear layers fc1, fc2, ... with a GELU between each two."""

    def __init__(self, c: ProjectorConfig, vision_dim: int, embed_dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        E, D = vision_dim, embed_dim
        self.depth = projector_depth(c.kind)
        self.fc1 = Einsum("BPE,ED->BPD", (E, D), ("embed", "mlp"), bias=True, dtype=dtype, rngs=rngs)
        for i in range(2, self.depth + 1):
            # Alternate the axes, so that the next layer sums over the axis that this one splits.
            axes = ("mlp", "embed") if i % 2 == 0 else ("embed", "mlp")
            setattr(self, f"fc{i}", Einsum("BPE,ED->BPD", (D, D), axes, bias=True, dtype=dtype, rngs=rngs))

    def __call__(self, x_BPE: Array) -> Array:
        """float[B, P, E] -> float[B, P, D]."""
        x = self.fc1(x_BPE)
        for i in range(2, self.depth + 1):
            x = getattr(self, f"fc{i}")(jax.nn.gelu(x, approximate=False))
        return x
        return x
