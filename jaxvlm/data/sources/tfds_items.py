"""Items of TensorFlow Datasets by random access, without TensorFlow: ArrayRecord files, images as they are stored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.data.records import RecordError
from jaxvlm.data.sources.formats import columns_to_read, recognise
from jaxvlm.data.sources.image_refs import ImageRule
from jaxvlm.data.sources.items import ItemSource, hash_files, hash_texts
from jaxvlm.errors import UserError, missing_extra, on_a_line

_SPEC = re.compile(r"tfds:(?P<name>[^:]+(:\d+\.[\d.*]+)?)(:(?P<split>.+))?")


class TfdsItems:
    """The examples of a data set of TensorFlow Datasets."""

    def __init__(self, source: Any, features: Any, name: str, content: list[str]):
        """Stores its arguments; `content` are texts that identify the data set."""
        self._source, self._features, self._name, self._content = source, features, name, content

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        origin = self.origin(index)
        try:
            return _plain(self._source[index], self._features)
        except UnicodeDecodeError as error:
            raise RecordError(f"{origin} holds a text that is not UTF-8 ({error})", origin, "invalid_utf8") from error
        except Exception as error:  # of a damaged file, of a feature without a decoder
            raise RecordError(
                f"{origin} cannot be read ({on_a_line(error)}); prepare the data set again", origin, "invalid_example"
            ) from error

    def origin(self, index: int) -> str:
        """The place of example `index`: "tfds:NAME:train[12]"."""
        return f"{self._name}[{index}]"

    def fingerprint(self) -> str:
        """Hash of the data set's description and, where they are local, of its files."""
        return hash_texts(self._content)


def load_tfds(spec: str, image_folder: str, *, allow_outside: bool) -> ItemSource:
    """Opens "tfds:NAME[/CONFIG][:VERSION][:SPLIT]", prepared in TFDS_DATA_DIR (~/tensorflow_datasets).

    Raises:
      UserError: it is not there, not in ArrayRecord files, has no such split, or no format that is recognised.
    """
    matched = _SPEC.fullmatch(spec)
    if matched is None:
        raise UserError(f"data.source = {spec!r} names no data set; give tfds:NAME[/CONFIG][:SPLIT]")
    name, split = matched["name"], matched["split"] or "train"
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise missing_extra(f"data.source = {spec!r}", "tensorflow-datasets", "tfds") from error
    try:
        builder = tfds.builder(name)
        features = builder.info.features
        format = recognise(features.keys(), spec, "write them as a LLaVA file or as a table")
        wanted = columns_to_read(format, features.keys())
        decoders = {
            column: _skip_decoding(tfds)
            for column, feature in features.items()
            if isinstance(getattr(feature, "feature", feature), tfds.features.Image)
        }
        source = builder.as_data_source(split=split, decoders=decoders)
    except UserError:
        raise
    except Exception as error:  # of the registry, of files, of splits: many types
        raise UserError(
            f"{spec!r} cannot be opened by tensorflow_datasets ({on_a_line(error)}); check the name, the split and "
            "TFDS_DATA_DIR, and prepare it with --file_format=array_record, which random access takes"
        ) from error
    kept = {column: features[column] for column in wanted}
    rule = ImageRule(Path(image_folder) if image_folder else Path(builder.data_dir), allow_outside)
    items = TfdsItems(source, kept, f"tfds:{name}:{split}", _content(builder, split))
    return ItemSource(items, format, rule, image_folder)


def _skip_decoding(tfds: Any) -> Any:
    """`SkipDecoding` that also takes a sequence of images, for which it lacks the method without TensorFlow."""
    decoder = tfds.decode.SkipDecoding()
    decoder.decode_batch_example_np = decoder.decode_example_np
    return decoder


def _content(builder: Any, split: str) -> list[str]:
    """Texts that identify this part of a data set."""
    info = builder.info.splits[split]
    shards = [f"{Path(part.filename).name}[{part.skip}:{part.skip + part.take}]" for part in info.file_instructions]
    files = sorted({str(part.filename) for part in info.file_instructions})
    described = [f"{builder.info.full_name}:{split}", *shards]
    return described if any("://" in file for file in files) else [*described, hash_files([Path(f) for f in files])]


def _plain(value: Any, feature: Any) -> Any:
    """An example in JSON's types, images as bytes: {"a": [b"x"]} of a sequence becomes [{"a": "x"}]."""
    from tensorflow_datasets import features

    if isinstance(feature, (dict, features.FeaturesDict)):
        return {key: _plain(value[key], feature[key]) for key in feature}
    inner = getattr(feature, "feature", None)
    if isinstance(feature, (features.Sequence, features.Dataset)) and inner is not None:
        if isinstance(value, dict):
            rows = zip(*value.values(), strict=True)
            return [_plain(dict(zip(value, row, strict=True)), inner) for row in rows]
        return [_plain(element, inner) for element in value]
    if isinstance(feature, features.Image):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
        return [v.decode() if isinstance(v, bytes) else v for v in value] if isinstance(value, list) else value
    return value
