"""Checkpoints of Hugging Face's world as sources of parts: what is in them, and their weights on our mesh."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlm.config import PARTS, DecoderConfig, ModelConfig, ProjectorConfig, VisionConfig
from jaxvlm.errors import UserError
from jaxvlm.trees import from_paths, paths
from jaxvlm.weights import hf_config
from jaxvlm.weights.folder import DerivedSource, TensorSource, TensorSpec, open_tensors
from jaxvlm.weights.gguf_file import GGUFSource, gguf_decoder_config
from jaxvlm.weights.hub import find_source
from jaxvlm.weights.llava import Spelling, find_spelling, llava_rules, llava_sizes
from jaxvlm.weights.rules import Rule, import_tensors

# Buffers that old versions of transformers saved, and the halves of CLIP and SigLIP that no LLaVA has.
_IGNORED = (
    r".*rotary_emb\.inv_freq",
    r".*\.position_ids",
    r"(text_model|text_projection|visual_projection)\..*",
    r"logit_scale|logit_bias",
)
_OWN_CHOICES = {"feature_layer"}  # of a recipe, not of an encoder that comes alone


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tensors of one folder or file, and how it spells the parts that it has."""

    tensors: TensorSource
    spelling: Spelling

    def prefixes(self) -> dict[str, str]:
        """Part -> what its tensors begin with."""
        prefixes: dict[str, str | None] = {part: getattr(self.spelling, part) for part in PARTS}
        return {part: prefix for part, prefix in prefixes.items() if prefix is not None}


@dataclasses.dataclass(frozen=True)
class Source:
    """One or several parts of a model."""

    spec: str  # as it was named
    path: Path  # the folder, or the GGUF file; the tokenizer is here too
    kind: str  # "llava", "llava_original", "vision", "language", "gguf"
    pieces: tuple[Piece, ...]
    configs: Mapping[str, VisionConfig | ProjectorConfig | DecoderConfig]  # by part
    aspect: str | None = None  # of images, if the files say so


def open_source(spec: str) -> Source:
    """Opens a checkpoint: its configs are read, of its weights only the names and shapes.

    Args:
      spec: a folder of `LlavaForConditionalGeneration`, of the original LLaVA, of a CLIP or SigLIP, or of a decoder; a
        GGUF file; or the hub's name of one.

    Raises:
      UserError: it is none of these, or has a field or files that we cannot read.
    """
    path = find_source(spec)
    if path.is_file():
        file = GGUFSource(path)
        piece = Piece(file, find_spelling(file))
        return Source(spec, path, "gguf", (piece,), {"language": gguf_decoder_config(file)})
    kind = hf_config.hf_folder_kind(path)
    tensors = open_tensors(path)
    piece = Piece(tensors, find_spelling(tensors))
    configs: dict[str, Any] = {}
    if kind == "llava":
        llava = hf_config.read_llava(path)
        configs = {part: getattr(llava, part) for part in PARTS}
    elif kind == "llava_original":
        return _open_original(spec, path, piece)
    elif kind == "vision":
        configs = {"vision": hf_config.read_vision(path)}
    else:
        configs = {"language": hf_config.read_language(path)}
    found = {part: config for part, config in configs.items() if part in piece.prefixes()}
    if not found:
        raise UserError(
            f"{path}: the tensors are none of a {kind} model; the first are {', '.join(sorted(tensors)[:3])}"
        )
    return Source(spec, path, kind, (piece,), found)


def _open_original(spec: str, path: Path, piece: Piece) -> Source:
    """A folder of the original LLaVA: perhaps only a projector; the encoder is a folder or a name in its config."""
    llava = hf_config.read_original_llava(path)
    configs: dict[str, Any] = {"projector": llava.projector, "language": llava.language}
    configs = {part: config for part, config in configs.items() if part in piece.prefixes()}
    pieces = [piece]
    if "language" in configs:
        # A path in the config is relative to the folder that holds it, if it is there.
        beside = path / llava.vision_tower
        tower = find_source(str(beside) if beside.is_dir() else llava.vision_tower)
        configs["vision"] = hf_config.read_vision(tower, llava.feature_layer)
        if "vision" not in piece.prefixes():
            tensors = open_tensors(tower)
            pieces.append(Piece(tensors, find_spelling(tensors)))
    return Source(spec, path, "llava_original", tuple(pieces), configs, llava.aspect)


def check_fit(source: Source, config: ModelConfig, parts: tuple[str, ...], *, resize_vocab: bool) -> None:
    """Compares a source's configs with a recipe's.

    Raises:
      UserError: every value that differs, and parts that the source does not have.
    """
    missing = [part for part in parts if part not in source.configs]
    problems = [f"it has no {part}" for part in missing]
    alone = "language" not in source.configs
    for part in parts:
        if part in missing:
            continue
        ours, theirs = dataclasses.asdict(getattr(config, part)), dataclasses.asdict(source.configs[part])
        for name, value in theirs.items():
            if ours[name] == value or (alone and name in _OWN_CHOICES):
                continue
            if name == "vocab_size" and resize_vocab and ours[name] > value:
                continue
            hint = ""
            if name == "vocab_size" and ours[name] > value:
                hint = " (or set config.init.resize_vocab to add rows)"
            problems.append(f"config.model.{part}.{name} is {ours[name]!r}, there it is {value!r}{hint}")
    if problems:
        raise UserError(
            f"{source.spec} is not what the recipe describes: {'; '.join(problems)}; change the recipe or the source"
        )


def load_weights(
    source: Source,
    config: ModelConfig,
    abstract: Mapping[str, Any],
    *,
    resize_vocab: bool = False,
    keep_dtypes: bool = False,
) -> dict[str, Any]:
    """Weights of the parts that are in `abstract`.

    Args:
      config: of the whole model; its parts fit the source (`check_fit`).
      abstract: part -> nested dict of values with shape, dtype and, if they are to be on devices, sharding.
      resize_vocab: whether rows are added where the source has fewer tokens than the model, each the mean of all.
      keep_dtypes: whether the weights keep the dtypes of the files in place of those of `abstract`.

    Raises:
      UserError: every tensor that is unused, missing or of a wrong shape.
    """
    loaded: dict[str, Any] = {}
    for piece in source.pieces:
        prefixes = piece.prefixes()
        wanted = {part: abstract[part] for part in prefixes if part in abstract and part not in loaded}
        if not wanted:
            continue
        others = [f"{re.escape(prefix.split('{')[0])}.*" for part, prefix in prefixes.items() if part not in wanted]
        if config.language.tie_embeddings or "language" not in wanted:
            others.append(r"(.*\.)?lm_head\.weight")  # some files hold it although it is the embedding
        tensors = piece.tensors
        if resize_vocab and "language" in wanted:
            tensors = ResizedVocab(tensors, piece.spelling, config.language.vocab_size)
        rules = llava_rules(config, piece.spelling)
        if keep_dtypes:
            wanted = _with_saved_dtypes(wanted, rules, tensors)
        loaded |= import_tensors(rules, tensors, wanted, llava_sizes(config), ignored=(*_IGNORED, *others))
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
    """Tensors with more rows in the embedding and the head; what is added is the mean of the rows that were there."""

    def __init__(self, source: TensorSource, spelling: Spelling, rows: int):
        self._rows = rows
        self._tables = {f"{spelling.language}embed_tokens.weight", f"{spelling.head}weight"} & set(source)

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
