"""The contract of a codec, which reads and writes one kind of Hugging Face folder.

A family has one, `CODEC` in its file `hf.py`; so has each part that families share (`jaxvlm/weights/hf/`), whose
folders may be imported and exported alone. Only codecs know a `model_type`, a tensor name or a field of config.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxvlm.config import GenerationConfig, ModelConfig
from jaxvlm.weights.rules import Rule
from jaxvlm.weights.spelling import Known, Spelling
from jaxvlm.weights.tensors import TensorSource
from jaxvlm.weights.writing import write_tensors


class Export(NamedTuple):
    """What an exporter needs for the small files of a folder."""

    config: Any  # of the whole model
    tokenizer: Any  # from `extend_tokenizer`, with the chat template of the training
    image_token_id: int  # -1: none
    stop_ids: tuple[int, ...]  # that end an answer
    media: Any  # the family's MediaConfig of the stage whose result is exported
    generation: GenerationConfig
    dtype: str  # of the weights: "float32", "bfloat16" or "float16"
    max_positions: int  # maximum sequence length for servers; the weights do not depend on it


class Reference(NamedTuple):
    """How transformers loads a folder, for comparisons."""

    model: Any  # its class, an Auto class
    processor: Any
    inputs: Callable[[Any, str, list[Path]], Mapping[str, Any]]  # processor, text with placeholders, image files
    image_token: str = "<image>"  # of an image in the text of its chat template


class AdapterNames(NamedTuple):
    """PEFT's names of adapted modules."""

    spelling: Spelling  # of transformers' module in memory
    rules: Callable[[Spelling], tuple[Rule, ...]]
    sizes: Mapping[str, int]
    module: str  # regex of a module of a block in any spelling; groups "vision" (None: the decoder), "layer", "name"
    known: Known
    projector: tuple[str, ...]  # the modules that are saved as a whole


@dataclasses.dataclass(frozen=True)
class Codec:
    """Reads and writes one kind of folder; functions that take a config take that of the whole model."""

    name: str
    open: Callable[[str, Path], WeightSource]  # the spec, and its folder; reads only names and shapes of the weights
    hub: Spelling  # of the files that transformers writes; the names of comparisons
    known: Known
    rules: Callable[[Any, Spelling], tuple[Rule, ...]]  # of the parts that the spelling has, with paths of the model
    sizes: Callable[[Any], dict[str, int]]  # of the engine
    ignored: tuple[str, ...]  # patterns of tensors in the files that are not used
    write: Callable[
        [Path, Export], tuple[dict[str, Any], list[str]]
    ]  # writes all except weights; returns config.json's values, and notes
    loads: Callable[[Spelling], bool] = lambda spelling: False  # whether transformers 4 and 5 load it as well as `hub`
    written: Callable[[Any], Spelling] | None = None  # of exported files, by the model's config; None: `hub`
    # The tokenizer or an extended copy, the id of its placeholder of images, and the tokens that were added.
    extend_tokenizer: Callable[[Any], tuple[Any, int, list[str]]] = lambda tokenizer: (tokenizer, -1, [])
    adapters: Callable[[Any], AdapterNames] | None = None
    reference: Reference | None = None  # None: a part without logits
    has_processor: bool = True  # False: a tokenizer alone, whose texts of a chat template get no special tokens
    parts: Mapping[str, Codec] = dataclasses.field(default_factory=dict)  # of the family, exported alone
    save: Callable[[Path, TensorSource, int], None] = write_tensors  # folder, tensors, most bytes of a file


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tensors of one folder or file, with the spelling of its parts."""

    tensors: TensorSource
    spelling: Spelling
    codec: Codec

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        """The table of its parts."""
        return self.codec.rules(config, self.spelling)


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """One or several parts of a model."""

    spec: str  # as given by the user
    path: Path  # the folder, or the GGUF file; also the tokenizer's
    pieces: tuple[Piece, ...]
    configs: Mapping[str, Any]  # part -> its config, of a class in the family's `config.model`
    family: str = ""  # "": parts that any family may take
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # other fields of `config.model`
    template: str = ""  # of conversations; "": the tokenizer's own
    media: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # settings of `data.media` found in the files
    image_token_id: int | None = None  # of config.json; None: it has none
    notes: tuple[str, ...] = ()  # settings in the files that are not used
