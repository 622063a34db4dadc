"""The parts of a checkpoint: checks that they fit a recipe, and loads their weights onto the mesh."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlm.config import DecoderConfig, ModelConfig
from jaxvlm.errors import UserError
from jaxvlm.trees import from_paths, paths
from jaxvlm.weights.codec import Codec, Piece, WeightSource
from jaxvlm.weights.compare import same_values
from jaxvlm.weights.rules import Rule, import_tensors
from jaxvlm.weights.spelling import find_heads, find_spelling
from jaxvlm.weights.tensors import DerivedSource, RenamedSource, TensorSource, TensorSpec

_OWN_CHOICES = {"feature_layer"}  # of a recipe, not of an encoder alone
_EXPORTED_AS = "architecture"  # Mistral's decoder is LLaMA's; differences are compared by their own fields
_EMBEDDINGS = ("language/embed/w", "language/head/w")


def part_source(
    codec: Codec, spec: str, path: Path, tensors: TensorSource, configs: Mapping[str, Any], **settings: Any
) -> WeightSource:
    """A source of one folder or file, with the parts of `configs` that have tensors in it.

    Args:
      codec: of the folder.
      spec: the source as given by the user.
      path: the folder or file.
      tensors: its tensors.
      configs: by part.
      **settings: other fields of `WeightSource`.

    Raises:
      UserError: it has tensors of none of the parts; or the output projection is missing, or stored twice with
        different values.
    """
    tensors = _with_one_head(tensors, codec, path)
    piece = Piece(tensors, find_spelling(tensors, codec.known), codec)
    found = {part: config for part, config in configs.items() if part in piece.spelling.prefixes()}
    if not found:
        raise UserError(
            f"{path}: the tensors are none of a {codec.name} model; the first are {', '.join(sorted(tensors)[:3])}"
        )
    if "language" in found:
        found["language"] = _with_stored_head(found["language"], piece, path)
    return WeightSource(spec, path, (piece,), found, **settings)


def _with_one_head(tensors: TensorSource, codec: Codec, path: Path) -> TensorSource:
    """Leaves out a second output projection, under another prefix, if it has the values of the first.

    Raises:
      UserError: the values differ.
    """
    first, *others = find_heads(tensors, codec.known) or [""]
    if differing := [name for name in others if not same_values(tensors, first, name)]:
        raise UserError(
            f"{path}: the output projection must have one value; {first} and {differing[0]} differ; remove the one "
            "that is not the model's"
        )
    return RenamedSource(tensors, lambda name: None if name in others else name) if others else tensors


def _with_stored_head(config: DecoderConfig, piece: Piece, path: Path) -> DecoderConfig:
    """The decoder's config, untied if the files have an output projection that differs from the embedding.

    Source: HF modeling_utils.py, PreTrainedModel.tie_weights, which does not tie two different stored tensors.

    Raises:
      UserError: embeddings are not tied and the files have no output projection.
    """
    spelling, known = piece.spelling, piece.codec.known
    if spelling.head is None and not config.tie_embeddings:
        prefixes, marker = known["head"]
        raise UserError(
            f"{path}: a decoder with tie_word_embeddings = false needs its output projection; "
            f"{prefixes[-1]}{marker} is missing in the weights; take the complete files, or set tie_word_embeddings = "
            "true in config.json if the model was trained so"
        )
    if spelling.head is None or not config.tie_embeddings:
        return config
    embedding, head = f"{spelling.language}{known['language'][1]}", f"{spelling.head}{known['head'][1]}"
    return dataclasses.replace(config, tie_embeddings=same_values(piece.tensors, embedding, head))


def check_fit(source: WeightSource, config: ModelConfig, parts: tuple[str, ...], *, resize_vocab: bool) -> None:
    """Compares a source's configs with a recipe's.

    Raises:
      UserError: with every value that differs, and parts that the source does not have.
    """
    problems = [f"it has no {part}" for part in parts if part not in source.configs]
    problems += [
        f"config.model.{name} is {getattr(config, name)!r}, there it is {value!r}"
        for name, value in source.model.items()
        if getattr(config, name, value) != value
    ]
    alone = "language" not in source.configs
    for part in parts:
        if part not in source.configs:
            continue
        if not isinstance(getattr(config, part, None), type(source.configs[part])):
            problems.append(f'the family "{config.family}" has no such {part}')
            continue
        ours, theirs = getattr(config, part), source.configs[part]
        for name, difference in part_differences(part, ours, theirs).items():
            if name == _EXPORTED_AS or (alone and name in _OWN_CHOICES):
                continue
            has_more_rows = name == "vocab_size" and getattr(ours, name) > getattr(theirs, name)
            if not (has_more_rows and resize_vocab):
                hint = " (or set config.init.resize_vocab to add rows)" if has_more_rows else ""
                problems.append(f"{difference}{hint}")
    if problems:
        raise UserError(
            f"{source.spec} is not what the recipe describes: {'; '.join(problems)}; change the recipe or the source"
        )


def part_differences(part: str, ours: Any, theirs: Any) -> dict[str, str]:
    """Field -> a clause, for each field in which the config of a part is not that of a source."""
    here, there = dataclasses.asdict(ours), dataclasses.asdict(theirs)
    return {
        name: f"config.model.{part}.{name} is {here[name]!r}, there it is {value!r}"
        for name, value in there.items()
        if here[name] != value
    }


def load_weights(
    source: WeightSource,
    config: ModelConfig,
    abstract: Mapping[str, Any],
    *,
    resize_vocab: bool = False,
    keep_dtypes: bool = False,
) -> dict[str, Any]:
    """Loads the weights of the parts in `abstract`.

    Args:
      config: of the whole model; its parts fit the source (`check_fit`).
      abstract: part -> nested dict of values with shape, dtype and, if they are to be on devices, sharding.
      resize_vocab: whether to add rows if the source has fewer tokens than the model, each the mean of all rows.
      keep_dtypes: whether the weights keep the dtypes of the files in place of those of `abstract`.

    Raises:
      UserError: with every tensor that is unused, missing or of a wrong shape.
    """
    loaded: dict[str, Any] = {}
    for piece in source.pieces:
        prefixes, head = piece.spelling.prefixes(), piece.spelling.head
        wanted = {part: abstract[part] for part in prefixes if part in abstract and part not in loaded}
        if not wanted:
            continue
        others = [f"{re.escape(prefix.split('{')[0])}.*" for part, prefix in prefixes.items() if part not in wanted]
        if head is not None and (config.language.tie_embeddings or "language" not in wanted):
            others.append(f"{re.escape(head)}.*")  # if tied it equals the embedding (`_with_stored_head`)
        tensors, rules = piece.tensors, piece.rules(config)
        if resize_vocab and "language" in wanted:
            tensors = ResizedVocab(tensors, rules, config.language.vocab_size)
        if keep_dtypes:
            wanted = _with_saved_dtypes(wanted, rules, tensors)
        ignored = (*piece.codec.ignored, *others)
        loaded |= import_tensors(rules, tensors, wanted, piece.codec.sizes(config), ignored=ignored)
    return loaded


def _with_saved_dtypes(abstract: Mapping[str, Any], rules: Sequence[Rule], tensors: TensorSource) -> dict[str, Any]:
    """`abstract` with the dtypes of the files; the widest where the layers of a stack differ."""
    flat = paths(abstract)
    for rule in rules:
        if rule.ours in flat:
            leaf = flat[rule.ours]
            names = [rule.hf.replace("{i}", str(i)) for i in range(leaf.shape[0] if rule.stacked else 1)]
            dtypes = {tensors.spec(name).dtype for name in names if name in tensors}
            dtype = jnp.result_type(*dtypes) if dtypes else leaf.dtype
            flat[rule.ours] = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
    return from_paths(flat)


class ResizedVocab(DerivedSource):
    """Tensors with more rows in the embedding and the head; added rows are the mean of the others."""

    def __init__(self, source: TensorSource, rules: Sequence[Rule], rows: int):
        self._rows = rows
        self._tables = {rule.hf for rule in rules if rule.ours in _EMBEDDINGS}

        def spec(name: str) -> TensorSpec:
            known = source.spec(name)
            return TensorSpec((rows, *known.shape[1:]), known.dtype) if name in self._tables else known

        super().__init__(source, {name: spec(name) for name in source})

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._source[name]
        added = self._rows - len(array) if name in self._tables else 0
        if not added:
            return array
        mean = np.mean(array, axis=0, keepdims=True, dtype=np.float32).astype(array.dtype)
        return np.concatenate([array, np.repeat(mean, added, axis=0)])
