"""The base of all families' vision-language models, and their functional interface for other packages.

Axis letters:
  B rows   T token position   F media features of a row   D embed of the decoder   V vocab
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvlm.batch import Array, Batch
from jaxvlm.config import LoraConfig, ModelConfig
from jaxvlm.errors import UserError
from jaxvlm.models.decoder import Cache, Decoder
from jaxvlm.models.layers import add_lora, set_dropout
from jaxvlm.sharding import constrain
from jaxvlm.tuning import remat_policy


def merge_image_features(embeds_BTD: Array, features_BFD: Array, image_index_BT: Array) -> Array:
    """Writes media features over the placeholders of their own row.

        embeds [ e5  e0  e0  e7 ]   image_index [ -1  0  1  -1 ]   features [ a  b ]   result [ e5  a  b  e7 ]

    Args:
      embeds_BTD: float[B, T, D], token embeddings.
      features_BFD: float[B, F, D], features of a row's media.
      image_index_BT: int32[B, T], which feature is here, -1 at text.

    Returns:
      float[B, T, D].
    """
    gathered_BTD = jax.vmap(lambda features, index: features[index])(features_BFD, jnp.maximum(image_index_BT, 0))
    return jnp.where(image_index_BT[:, :, None] >= 0, gathered_BTD, embeds_BTD)


class VLM(nnx.Module):
    """A media encoder, a projector and a language decoder, joined by one sequence; or a decoder alone.

    A family's module makes its parts in `__init__(config, rngs)`, in this order: `vision`, `projector`, `language`; and
    defines `encode`.
    """

    vision: nnx.Module
    projector: nnx.Module
    language: Decoder

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        raise NotImplementedError

    def encode(self, media: Any) -> Any:
        """Features of the media of all rows.

        Args:
          media: the family's struct, `Batch.media`.

        Returns:
          float[B, F, D]; or what the family's `merge` and `added` take, a struct of float[B, ..., F, D]; or None if the
          rows have no media units.
        """
        raise NotImplementedError

    def merge(self, x_BTD: Array, features: Any, image_index_BT: Array) -> Array:
        """The decoder's input, float[B, T, D]: token embeddings with the features of `encode` at their positions."""
        if features is None:
            return x_BTD
        return merge_image_features(x_BTD, constrain(features, ("batch", None, None)), image_index_BT)

    def added(self, features: Any, image_index_BT: Array) -> Array | None:
        """float[K, B, T, D], what the features of `encode` add to the outputs of the decoder's first K blocks."""
        return None

    def next_position(self, batch: Batch) -> Array:
        """int32[B], the position of the token after each row's prompt; equal on all axes of a position."""
        positions_BTA = batch.positions.reshape(*batch.tokens.shape, -1)
        real_BT1 = (batch.segments != 0)[:, :, None]
        return jnp.max(jnp.where(real_BT1, positions_BTA, -1), axis=(1, 2)) + 1

    def hidden(self, batch: Batch) -> Array:
        """Final-normed hidden states, float[B, T, D]; `logits` makes logits of all or some of them."""
        x_BTD = self.language.embed(batch.tokens)
        features = self.encode(batch.media)
        x_BTD = self.merge(x_BTD, features, batch.image_index)
        return self.language(x_BTD, batch.positions, batch.segments, self.added(features, batch.image_index))

    def head(self) -> Array:
        """float[V, D], the output projection of `logits`, for losses that never make all logits at once."""
        return (self.language.embed if self.language.head is None else self.language.head).w[...]

    def logits(self, x: Array) -> Array:
        """float[..., D], final-normed hidden states -> float32[..., V]."""
        return self.language.logits(x)

    def prefill(self, batch: Batch, features: Any, max_length: int) -> tuple[Array, Cache]:
        """Reads prompts.

        Args:
          batch: rows that begin with their prompt and end in padding (segment 0); its media are not read.
          features: of `encode`, for these rows.
          max_length: slots of the cache; T, and one for each new token.

        Returns:
          float32[B, V], logits after the last token of each row, and the cache.

        Raises:
          ValueError: T does not fit into `max_length`.
        """
        if max_length < batch.tokens.shape[1]:
            raise ValueError(
                f"prefill: max_length {max_length} is less than the {batch.tokens.shape[1]} tokens of a row"
            )
        x_BTD = self.merge(self.language.embed(batch.tokens), features, batch.image_index)
        added = self.added(features, batch.image_index)
        x_BTD, cache = self.language.prefill(x_BTD, batch.positions, batch.segments, max_length, added)
        return self._last_logits(x_BTD, batch), cache

    def prefill_more(self, batch: Batch, features: Any, cache: Cache) -> tuple[Array, Cache]:
        """Reads the rest of prompts whose beginnings are in a cache.

        Args:
          batch: rows that begin with the rest of their prompt, with its positions in the prompt, and end in padding.
          features: of `encode`; None: there are no media in the rest.
          cache: of the beginnings, with a `next` for each row and room for the rest.

        Returns:
          as `prefill`.
        """
        x_BTD = self.merge(self.language.embed(batch.tokens), features, batch.image_index)
        added = self.added(features, batch.image_index)
        x_BTD, cache = self.language.extend(x_BTD, batch.positions, cache, batch.segments, added)
        return self._last_logits(x_BTD, batch), cache

    def _last_logits(self, x_BTD: Array, batch: Batch) -> Array:
        last_B = jnp.maximum(jnp.sum(batch.segments != 0, axis=1) - 1, 0)
        return self.logits(jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0])

    def extend(
        self,
        tokens_B1: Array,
        positions_B1: Array,
        cache: Cache,
        segments_B1: Array | None = None,
        seen: int | None = None,
    ) -> tuple[Array, Cache]:
        """Reads one more token in each row.

        Args:
          tokens_B1: int32[B, 1].
          positions_B1: int32[B, 1], of the token in its own sample: the length of the prompt, then one more each step.
          cache: of `prefill` or of an earlier step. More steps than it has free slots overwrite the last one.
          segments_B1, seen: as those of `Decoder.extend`.

        Returns:
          float32[B, V], logits after the token, and the new cache; usable as the carry of `jax.lax.while_loop`.
        """
        x_B1D = self.language.embed(tokens_B1)
        x_B1D, cache = self.language.extend(x_B1D, positions_B1, cache, segments_B1, seen=seen)
        return self.logits(x_B1D[:, 0]), cache


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model without weights: their shapes, their initialisation, and their use.

    Weights are nested dicts of arrays, `{"language": {"blocks": {"attention": {"q": {"w": ...}}}}}`; blocks of a part
    are stacked, with a leading axis "layers".
    """

    module: type[VLM]  # of the family
    config: ModelConfig
    adapters: tuple[tuple[str, LoraConfig], ...]  # (part, its adapters)
    graph: nnx.GraphDef[VLM]
    abstract: dict[str, Any]  # jax.ShapeDtypeStruct (float32) at each leaf
    axes: dict[str, Any]  # a tuple of logical axis names (or None) at each leaf, one for each dimension

    def init(self, key: Array) -> dict[str, Any]:
        """Random weights. Pure: under `jax.jit` with `out_shardings` each device makes its own share."""
        return nnx.to_pure_dict(nnx.state(_make(self.module, self.config, self.adapters, nnx.Rngs(params=key))))

    def bind(self, params: dict[str, Any], dropout_key: Array | None = None) -> VLM:
        """The module with `params` (of any dtype) in it; costs nothing under `jax.jit`.

        Args:
          dropout_key: typed key of `jax.random` for the adapters' dropout; None: no dropout.
        """
        module = nnx.merge(self.graph, nnx.State(params))
        if dropout_key is not None:
            set_dropout(module, dropout_key)
        return module

    @property
    def has_dropout(self) -> bool:
        """Whether training needs a `dropout_key`."""
        return any(lora.dropout for _, lora in self.adapters)


@functools.lru_cache(maxsize=8)
def make_model(module: type[VLM], config: ModelConfig, adapters: tuple[tuple[str, LoraConfig], ...]) -> Model:
    """The model of a family's module; only shapes are computed. `families.build.build_model` finds the module.

    Equal arguments give the same model, so programs are reused.

    Args:
      module: the family's.
      adapters: (part, its adapters); their leaves `lora/a` and `lora/b` are next to the weight they adapt.

    Raises:
      UserError: the config has an invalid value, or adapters match no projection.
    """
    remat_policy(config.remat)
    if config.compute_dtype not in ("bfloat16", "float32"):
        raise UserError(f'config.model.compute_dtype = "{config.compute_dtype}", expected "bfloat16" or "float32"')
    graph, state = nnx.split(nnx.eval_shape(lambda: _make(module, config, adapters, nnx.Rngs(params=0))))
    axes = jax.tree.map(
        lambda variable: tuple(variable.get_metadata("out_sharding")),
        nnx.to_pure_dict(state, extract_fn=lambda variable: variable),
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
    return Model(module, config, adapters, graph, nnx.to_pure_dict(state), axes)


def _make(module: type[VLM], config: ModelConfig, adapters: tuple[tuple[str, LoraConfig], ...], rngs: nnx.Rngs) -> VLM:
    made = module(config, rngs)
    for part, lora in adapters:
        add_lora(getattr(made, part), part, lora, rngs=rngs)
    return made
