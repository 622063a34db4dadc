"""Data sets of Hugging Face `datasets`, as `save_to_disk` writes them and as folders of files."""

import io
import pickle
import sys

import datasets
import pytest
from PIL import Image

from jaxvlm.data.media.images import load_image
from jaxvlm.data.sources.load import load_source
from jaxvlm.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def dataset(start, stop, column="images"):
    text = datasets.Value("string")
    features = {
        "messages": datasets.List({"role": text, "content": text}),
        column: datasets.List(datasets.Image()) if column == "images" else datasets.Image(),
        "source": text,
    }
    rows = []
    for i in range(start, stop):
        messages = [{"role": "user", "content": f"<image>Q{i}"}, {"role": "assistant", "content": f"A{i}"}]
        image = {"bytes": png(i), "path": None}
        rows.append({"messages": messages, column: [image] if column == "images" else image, "source": "x"})
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


@pytest.mark.parametrize("column", ["image", "images"])
def test_images_are_not_decoded(tmp_path, column, monkeypatch):
    dataset(0, 3, column).save_to_disk(tmp_path / "d")
    source = pickle.loads(pickle.dumps(load_source(f"hf:{tmp_path}/d")))
    monkeypatch.setattr(datasets.Image, "decode_example", None)
    record = source[1]
    assert [(turn.role, turn.text) for turn in record.turns] == [("user", "<image>Q1"), ("assistant", "A1")]
    assert (record.images, record.origin, len(source)) == ((png(1),), f"hf:{tmp_path}/d[1]", 3)
    assert load_image(record.images[0], 4, "pad").shape == (4, 4, 3)


def test_splits(tmp_path):
    datasets.DatasetDict({"train": dataset(0, 3), "test": dataset(3, 5)}).save_to_disk(tmp_path / "d")
    assert len(load_source(f"hf:{tmp_path}/d")) == 3
    assert load_source(f"hf:{tmp_path}/d:test")[0].turns[0].text == "<image>Q3"
    with pytest.raises(UserError, match="there is no split 'dev'.*train, test"):
        load_source(f"hf:{tmp_path}/d:dev")


def test_a_folder_of_data_files(tmp_path):
    (tmp_path / "d").mkdir()
    dataset(0, 3).to_parquet(tmp_path / "d" / "train-00000.parquet")
    dataset(3, 5).to_parquet(tmp_path / "d" / "test-00000.parquet")
    assert load_source(f"hf:{tmp_path}/d")[2].images == (png(2),)
    source = load_source(f"hf:{tmp_path}/d:test[1:]")
    assert (len(source), source[0].images) == (1, (png(4),))
    with pytest.raises(UserError, match="cannot be opened by datasets.*dev"):
        load_source(f"hf:{tmp_path}/d:dev")


def test_the_code_of_a_data_set_is_not_run(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="cannot be opened by datasets"):
        load_source(f"hf:{tmp_path}/d")
    assert not (tmp_path / "ran").exists()


def test_no_format_is_recognised(tmp_path):
    datasets.Dataset.from_list([{"problem": "Q", "solution": "A"}]).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match=r"its columns \(problem, solution\).*dataset_info\.json:NAME"):
        load_source(f"hf:{tmp_path}/d")


def test_the_fingerprint_is_one_of_the_content(tmp_path):
    for name, stop in ("a", 3), ("b", 3), ("c", 4):
        dataset(0, stop).save_to_disk(tmp_path / name)
    a, b, c = (load_source(f"hf:{tmp_path}/{name}").fingerprint() for name in "abc")
    assert a == b != c


def test_without_a_network_there_is_one_message(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'hf:jaxvlm/none' cannot be opened by datasets.*HF_TOKEN"):
        load_source("hf:jaxvlm/none")
    with pytest.raises(UserError, match="names no data set"):
        load_source("hf:")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[hf\]'"):
        load_source("hf:x")
