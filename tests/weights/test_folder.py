import errno
import json
import os
import pickle
import sys
import types
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

from jaxvlm.errors import UserError
from jaxvlm.weights import reading, writing
from jaxvlm.weights.reading import open_tensors
from jaxvlm.weights.tensors import DictSource, RenamedSource, TensorSource, TensorSpec
from jaxvlm.weights.writing import new_folder, parse_size, write_tensors

pytestmark = pytest.mark.torch

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int64]
TORCH = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64]


def some_tensors():
    """One of each dtype, with odd sizes, a scalar and an empty one."""
    random = np.random.default_rng(0)
    tensors = {f"t.{i}": random.integers(-8, 8, (3 + i, 5)).astype(dtype) for i, dtype in enumerate(DTYPES)}
    return tensors | {"scalar": np.array(2.5, ml_dtypes.bfloat16), "empty": np.zeros((0, 4), np.float32)}


def assert_same(have, want):
    assert set(have) == set(want)
    for name, tensor in want.items():
        assert have.spec(name) == TensorSpec(tensor.shape, tensor.dtype)
        array = have[name]
        assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)
        assert array.tobytes() == tensor.tobytes(), name


def mapped(path):
    """How many times this process maps a file."""
    return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_one_file(tmp_path):
    write_tensors(tmp_path, some_tensors(), shard_bytes=10**9)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    source = open_tensors(tmp_path)
    assert_same(source, some_tensors())
    assert source.where("t.0") == str(tmp_path / "model.safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_and_their_index(tmp_path):
    tensors = {f"x{i}": np.full((size,), i, np.uint8) for i, size in enumerate([30, 60, 250, 40, 40, 30])}
    write_tensors(tmp_path, tensors, shard_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 450}
    files = [f"model-0000{k}-of-00004.safetensors" for k in (1, 2, 3, 4)]
    assert sorted(os.listdir(tmp_path)) == sorted([*files, "model.safetensors.index.json"])
    assert [index["weight_map"][name] for name in tensors] == [files[k] for k in (0, 0, 1, 2, 2, 3)]
    source = open_tensors(tmp_path)
    assert_same(source, tensors)
    assert source.where("x2") == str(tmp_path / files[1])


def test_a_tensor_is_mapped_only_while_it_lives(tmp_path):
    write_tensors(tmp_path, some_tensors(), shard_bytes=10**9)
    source, path = open_tensors(tmp_path), tmp_path / "model.safetensors"
    assert mapped(path) == 0
    array = source["t.2"]
    assert isinstance(array, np.memmap) and not array.flags.writeable and mapped(path) == 1
    del array
    assert mapped(path) == 0


def test_any_single_safetensors_file(tmp_path):
    safetensors.numpy.save_file(some_tensors(), tmp_path / "adapter_model.safetensors")
    assert_same(open_tensors(tmp_path), some_tensors())


def torch_tensors():
    tensors = {name: x for name, x in some_tensors().items() if name.startswith("t.")}
    made = {}
    for (name, x), dtype in zip(tensors.items(), TORCH, strict=True):
        made[name] = torch.from_numpy(x.view(f"i{x.itemsize}")).view(dtype)
    return tensors, made


@pytest.mark.parametrize("name", ["pytorch_model.bin", "mm_projector.bin"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle(tmp_path, name, zipped):
    tensors, made = torch_tensors()
    if not zipped:  # torch cannot write float8 so
        made = {name: x for name, x in made.items() if "float8" not in str(x.dtype)}
        tensors = {name: tensors[name] for name in made}
    torch.save(made, tmp_path / name, _use_new_zipfile_serialization=zipped)
    source = open_tensors(tmp_path)
    assert_same(source, tensors)
    assert source.where("t.0") == str(tmp_path / name)


def test_a_pickle_is_mapped_anew_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_SERVED_BYTES", 100)
    path = tmp_path / "pytorch_model.bin"
    torch.save({f"x{i}": torch.full((9,), i) for i in range(9)}, path)
    loads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: loads.append(kwargs) or load(*args, **kwargs))
    source = open_tensors(tmp_path)
    kept = [source[name] for name in source]
    assert [x.tolist() for x in kept] == [[i] * 9 for i in range(9)]
    # Of 72 bytes two go over 100: the third, fifth, seventh and ninth come from a new mapping.
    assert loads == 5 * [{"map_location": "cpu", "mmap": True, "weights_only": True}]
    assert mapped(path) == 5
    del kept
    assert mapped(path) == 1


def test_sharded_pickles(tmp_path):
    tensors, made = torch_tensors()
    names = list(made)
    weight_map = {}
    for k, part in enumerate((names[:2], names[2:]), 1):
        torch.save({name: made[name] for name in part}, tmp_path / f"pytorch_model-{k}.bin")
        weight_map |= dict.fromkeys(part, f"pytorch_model-{k}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(open_tensors(tmp_path), tensors)


def test_safetensors_come_before_pickles(tmp_path):
    torch.save({"x": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    write_tensors(tmp_path, {"x": np.ones(3)}, shard_bytes=10**9)
    assert open_tensors(tmp_path)["x"].sum() == 3


def test_no_weights(tmp_path):
    with pytest.raises(UserError, match=r"has no weights; looked for model.safetensors, .*mm_projector.bin"):
        open_tensors(tmp_path)
    with pytest.raises(UserError, match="absent is no folder"):
        open_tensors(tmp_path / "absent")


def test_several_files_without_an_index(tmp_path):
    for name in ("a", "b"):
        safetensors.numpy.save_file({name: np.ones(3)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"holds a.safetensors, b.safetensors, but no index"):
        open_tensors(tmp_path)


def test_all_corrupt_files_are_named(tmp_path):
    write_tensors(tmp_path, {f"x{i}": np.ones(50) for i in range(4)}, shard_bytes=400)
    first, second, third, _ = sorted(tmp_path.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-7])
    second.write_text("version https://git-lfs.github.com/spec/v1\n")
    third.write_bytes(b"")
    with pytest.raises(UserError) as error:
        open_tensors(tmp_path)
    message = str(error.value)
    assert all(str(path) in message for path in (first, second, third)) and "00004-of" not in message
    assert message.count("copy or download it again") == 3 and "git lfs pull" in message


def test_an_unknown_dtype(tmp_path):
    header = json.dumps({"x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(UserError, match=r"model.safetensors has dtypes that NumPy cannot hold: x \(F4\)"):
        open_tensors(tmp_path)


def test_all_absent_shards_are_named(tmp_path):
    write_tensors(tmp_path, {f"x{i}": np.ones(50) for i in range(4)}, shard_bytes=400)
    first, _, third, _ = sorted(tmp_path.glob("*.safetensors"))
    first.unlink()
    third.unlink()
    with pytest.raises(UserError, match=f"2 of the 4 files .*json names are absent: {first.name}, {third.name}; copy"):
        open_tensors(tmp_path)


def test_a_tensor_that_is_not_in_its_shard(tmp_path):
    write_tensors(tmp_path, {f"x{i}": np.ones(50) for i in range(2)}, shard_bytes=400)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    file = index["weight_map"].pop("x1")
    path.write_text(json.dumps(index | {"weight_map": index["weight_map"] | {"y": file, "z": file}}))
    with pytest.raises(UserError, match=rf"2 tensors are not in the files .*: y \(in {file}\), z \(in {file}\)"):
        open_tensors(tmp_path)
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"x0": file.replace("2-of", "1-of")}}))
    assert set(open_tensors(tmp_path)) == {"x0"}  # its file is not opened: the index does not know of it


def test_what_a_shard_holds_beyond_the_index_comes_too(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(3), "b": np.ones(2)}, tmp_path / "s.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "s.safetensors"}}))
    assert set(open_tensors(tmp_path)) == {"a", "b"}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"index.json is not an index"):
        open_tensors(tmp_path)


class Code:
    """Unpickling it runs a command."""

    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused(tmp_path, zipped):
    torch.save({"x": Code()}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"pytorch_model.bin is refused: only tensors are loaded"):
        open_tensors(tmp_path)


def test_a_pickle_of_something_else(tmp_path):
    torch.save({"model": {"x": torch.zeros(2)}, "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin holds dict, int where a dict of tensors is expected"):
        open_tensors(tmp_path)


def test_a_pickle_that_is_cut_off(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.zeros(2000)}, path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"pytorch_model.bin is truncated or corrupt"):
        open_tensors(tmp_path)
    path.write_bytes(pickle.dumps({}, 2)[:-1])
    with pytest.raises(UserError, match=r"pytorch_model.bin is (truncated|refused)"):
        open_tensors(tmp_path)


def test_a_pickle_without_torch(tmp_path, monkeypatch):
    torch.save({"x": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs PyTorch: `pip install torch`"):
        open_tensors(tmp_path)


class Made(TensorSource):
    """Tensors made on access; knows how many bytes of them live."""

    def __init__(self, count, size):
        super().__init__({f"x{i}": TensorSpec((size,), np.dtype(np.uint8)) for i in range(count)})
        self.living = self.most = 0

    def __getitem__(self, name):
        array = np.full(*self.spec(name)[:1], int(name[1:]), np.uint8)
        self.living += array.nbytes
        self.most = max(self.most, self.living)
        weakref.finalize(array, self.drop, array.nbytes)
        return array

    def drop(self, nbytes):
        self.living -= nbytes


def test_one_shard_is_in_memory_at_a_time(tmp_path):
    source = Made(count=12, size=100)
    write_tensors(tmp_path, source, shard_bytes=300)
    assert source.most == 300
    assert_same(open_tensors(tmp_path), dict(Made(count=12, size=100).items()))


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=3 * 10**9)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage)
    source = Made(count=1, size=5 * 10**9)
    with pytest.raises(UserError, match=r"the weights need 5\.00 GB, 3\.00 GB are free"):
        write_tensors(tmp_path, source, shard_bytes=10**9)
    assert source.most == 0 and not os.listdir(tmp_path)


def test_a_disk_that_fills_while_writing(tmp_path, monkeypatch):
    def save_file(*args):
        # What safetensors 0.8 says.
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", save_file)
    with (
        pytest.raises(UserError, match=r"no space left for .*: the weights need 0\.00 GB"),
        new_folder(tmp_path / "out", overwrite=False) as folder,
    ):
        write_tensors(folder, {"x": np.ones(3)}, shard_bytes=10**9)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("5 gb", 5 * 10**9),
        ("1.5MB", 1_500_000),
        ("2GiB", 2 * 2**30),
        ("7KiB", 7 * 1024),
        ("3K", 3000),
        ("123", 123),
        ("9B", 9),
        ("1TB", 10**12),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "5XB", "5 GB more", "0", "0.1B", "iB", "5iB", "1e9"])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="is not a size; write a number of bytes"):
        parse_size(text)


def test_a_renamed_source():
    source = DictSource({"model.a": np.ones(3), "model.b": np.ones(2), "other": np.ones(1)})
    renamed = RenamedSource(source, lambda name: name.removeprefix("model.") if name != "other" else None)
    assert_same(renamed, {"a": np.ones(3), "b": np.ones(2)})
    assert renamed.is_mapped("a")
    with pytest.raises(UserError, match=r"model.a and model.b \(same\)"):
        RenamedSource(source, lambda name: "same" if name != "other" else None)


def test_a_new_folder(tmp_path):
    target = tmp_path / "up" / "out"
    with new_folder(target, overwrite=False) as folder:
        assert folder.parent == target.parent and folder.name == f".out.tmp-{os.getpid()}"
        (folder / "f").write_text("new")
        assert not target.exists()
    assert os.listdir(target.parent) == ["out"] and (target / "f").read_text() == "new"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", overwrite=False) as folder:
        (folder / "f").write_text("new")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["f"]


def full_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    return tmp_path / "out"


def test_a_full_folder_is_an_error_at_the_start(tmp_path):
    target = full_folder(tmp_path)
    with pytest.raises(UserError, match=r"out is not empty; pass --overwrite"), new_folder(target, overwrite=False):
        pytest.fail("the block ran")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"), new_folder(tmp_path / "file", overwrite=True):
        pytest.fail("the block ran")
    with (
        pytest.raises(UserError, match="cannot make a folder in .*file"),
        new_folder(tmp_path / "file/a", overwrite=True),
    ):
        pytest.fail("the block ran")
    assert sorted(os.listdir(tmp_path)) == ["file", "out"]


def test_overwriting_replaces_at_the_end(tmp_path):
    target = full_folder(tmp_path)
    with new_folder(target, overwrite=True) as folder:
        (folder / "f").write_text("new")
        assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["out"] and os.listdir(target) == ["f"]


def test_overwriting_behind_a_link(tmp_path):
    target = full_folder(tmp_path)
    (tmp_path / "link").symlink_to(target)
    with new_folder(tmp_path / "link", overwrite=True) as folder:
        (folder / "f").write_text("new")
    assert (tmp_path / "link").is_symlink() and os.listdir(target) == ["f"]


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (OSError(errno.EIO, "I/O error"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_an_error_leaves_everything_as_it_was(tmp_path, raised, seen, overwrite):
    target = full_folder(tmp_path) if overwrite else tmp_path / "out"
    with pytest.raises(seen), new_folder(target, overwrite=overwrite) as folder:
        (folder / "f").write_text("half")
        raise raised
    assert os.listdir(tmp_path) == (["out"] if overwrite else [])
    assert not overwrite or os.listdir(target) == ["old"]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    target, rename = full_folder(tmp_path), Path.rename

    def failing(self, to):
        if ".tmp-" in self.name:
            raise OSError(errno.EIO, "I/O error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="I/O error"), new_folder(target, overwrite=True):
        pass
    assert os.listdir(tmp_path) == ["out"] and os.listdir(target) == ["old"]
