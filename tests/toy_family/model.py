"""B rows   U patches of a row   Q values of a patch   F = U / 2 features   E embed of the encoder   D of the decoder"""

import jax.numpy as jnp
from flax import nnx

from jaxvlm.models.attention import attend
from jaxvlm.models.decoder import Decoder
from jaxvlm.models.layers import Einsum, make_weight
from jaxvlm.models.vlm import VLM


class Encoder(nnx.Module):
    def __init__(self, E, *, dtype, rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.patch = Einsum("BUQ,QE->BUE", (48, E), (None, "embed"), **options)
        self.rows = make_weight((4, E), ("patches", "embed"), 0.5, rngs=rngs)
        self.columns = make_weight((6, E), ("patches", "embed"), 0.5, rngs=rngs)
        self.q, self.k, self.v = (
            Einsum("BTD,DNH->BTNH", (E, 2, E // 2), ("embed", "heads", "head_dim"), **options) for _ in range(3)
        )
        self.out = Einsum("BTNH,NHD->BTD", (2, E // 2, E), ("heads", "head_dim", "embed"), **options)

    def __call__(self, media):
        B, U = media.images.shape
        x_BUE = self.patch(media.pixels.reshape(B, U, -1).astype(jnp.float32) / 128 - 1)
        x_BUE += self.rows[...][media.places[..., 0]] + self.columns[...][media.places[..., 1]]
        segments = (media.images, media.images)
        return x_BUE + self.out(attend(self.q(x_BUE), self.k(x_BUE), self.v(x_BUE), segments, causal=False))


class Toy(VLM):
    def __init__(self, config, rngs):
        dtype, E = jnp.dtype(config.compute_dtype), config.encoder_dim
        self.vision = Encoder(E, dtype=dtype, rngs=rngs)
        shape = (2 * E, config.language.embed_dim)
        self.projector = Einsum("BFE,ED->BFD", shape, ("mlp", "embed"), bias=True, dtype=dtype, rngs=rngs)
        self.language = Decoder(config.language, dtype=dtype, remat=config.remat, rngs=rngs)

    def encode(self, media):
        B, U = media.images.shape
        if U == 0:
            return None
        return self.projector(self.vision(media).reshape(B, U // 2, -1))


MODULE = Toy
