"""Data sets of TensorFlow Datasets, written by that library without TensorFlow and read without it."""

import io
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxvlm.data.records import RecordError
from jaxvlm.data.sources.load import load_source
from jaxvlm.errors import UserError


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


class Chats(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="one"), tfds.core.BuilderConfig(name="two")]

    def _info(self):
        one = self.builder_config.name == "one"
        image = tfds.features.Image()
        text = tfds.features.Text()
        features = {
            "id": tfds.features.Scalar(np.int64),
            "conversations": tfds.features.Sequence({"from": text, "value": text}),
            "image" if one else "images": image if one else tfds.features.Sequence(image),
            "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(0, 4), "test": self._generate_examples(4, 6)}

    def _generate_examples(self, start, stop):
        one = self.builder_config.name == "one"
        for i in range(start, stop):
            files = [io.BytesIO(png(i)), io.BytesIO(png(i + 1))]
            question = "<image>ä" if one else "<image><image>ä"
            yield (
                i,
                {
                    "id": i,
                    "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": f"A{i}"}],
                    "image" if one else "images": files[0] if one else files,
                    "box": np.zeros(4, np.float32),
                },
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for config in "one", "two":
        Chats(data_dir=folder, config=config, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def data_dir(folder, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(folder))  # what TFDS_DATA_DIR sets when it is imported


def test_examples(folder):
    source = pickle.loads(pickle.dumps(load_source("tfds:chats/one")))
    records = {source[i].id: source[i] for i in range(len(source))}
    assert sorted(records) == ["0", "1", "2", "3"]  # shuffled, as that library does when it writes
    assert [(turn.role, turn.text) for turn in records["2"].turns] == [("user", "<image>ä"), ("assistant", "A2")]
    assert records["2"].images == (png(2),)
    assert source[3].origin == "tfds:chats/one:train[3]"


def test_several_images():
    source = load_source("tfds:chats/two:1.2.0:test")
    assert len(source) == 2
    assert source[0].images == (png(int(source[0].id)), png(int(source[0].id) + 1))
    assert len(load_source("tfds:chats/two:test[:1]")) == 1


def test_tensorflow_is_not_needed():
    assert "tensorflow" not in sys.modules


def test_fingerprints_differ():
    specs = ["chats/one", "chats/two", "chats/one:test", "chats/one:train[:2]", "chats/one:train[1:3]"]
    assert len({load_source(f"tfds:{spec}").fingerprint() for spec in specs}) == len(specs)
    assert load_source("tfds:chats/one").fingerprint() == load_source("tfds:chats/one:1.2.0:train").fingerprint()


@pytest.mark.parametrize(
    "spec, words",
    [
        ("tfds:", "names no data set"),
        ("tfds:none_such", "cannot be opened by tensorflow_datasets.*TFDS_DATA_DIR"),
        ("tfds:chats/one:dev", "Unknown split 'dev'"),
        ("tfds:chats/three", "cannot be opened"),
        ("tfds:mnist", r"its columns \(image, label\).*write them as a LLaVA file"),
    ],
)
def test_a_spec_that_is_wrong(spec, words):
    with pytest.raises(UserError, match=words):
        load_source(spec)


def test_a_data_set_that_is_not_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="cannot be opened.*TFDS_DATA_DIR, and prepare it with"):
        load_source("tfds:chats/one")


def test_a_damaged_file(folder, tmp_path, monkeypatch):
    source = load_source("tfds:chats/one")
    (shard,) = (folder / "chats" / "one" / "1.2.0").glob("*train*")
    data = shard.read_bytes()
    shard.write_bytes(data[:-100])
    try:
        with pytest.raises((RecordError, UserError), match="cannot be"):
            load_source("tfds:chats/one")[0]
    finally:
        shard.write_bytes(data)
    assert source[0].images


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[tfds\]'"):
        load_source("tfds:x")
