"""Opens Hugging Face checkpoints by the codec of their family or part."""

from __future__ import annotations

from pathlib import Path

from jaxvlm.families.registry import MODEL_TYPES, codec
from jaxvlm.weights.codec import Codec, WeightSource
from jaxvlm.weights.hf import decoder, vision
from jaxvlm.weights.hf.strict import CONFIG_FILE, read_config, unknown
from jaxvlm.weights.hub import find_source

# Parts that are imported and exported alone.
PART_CODECS = {"vision": vision.CODEC, "language": decoder.CODEC}
_PART_TYPES = dict.fromkeys(vision.MODEL_TYPES, vision.CODEC) | dict.fromkeys(decoder.MODEL_TYPES, decoder.CODEC)


def folder_codec(folder: Path) -> Codec:
    """Finds the codec of a folder by the `model_type` in its config.json.

    Raises:
      UserError: no config.json, or an unsupported `model_type`.
    """
    name = read_config(folder).get("model_type")
    if name in MODEL_TYPES:
        return codec(MODEL_TYPES[name])
    if name in _PART_TYPES:
        return _PART_TYPES[name]
    raise unknown(name, [*MODEL_TYPES, *_PART_TYPES], str(folder / CONFIG_FILE))


def open_source(spec: str) -> WeightSource:
    """Opens a checkpoint: reads its configs, and only names and shapes of its weights.

    Args:
      spec: a folder of a family's model or of a part alone (CLIP, SigLIP, a decoder); a GGUF file; or the hub's name of
        one.

    Raises:
      UserError: it is none of these, or has an unsupported field or file.
    """
    path = find_source(spec)
    return decoder.open_gguf(spec, path) if path.is_file() else folder_codec(path).open(spec, path)
