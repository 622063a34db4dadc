import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxvlm.config import MeshConfig
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.families.llava.weights import HUB, MEMORY, llava_rules, llava_sizes
from jaxvlm.sharding import Rules, make_mesh, named_shardings
from jaxvlm.trees import from_paths, paths
from jaxvlm.weights import rules as rules_module
from jaxvlm.weights.reading import open_tensors
from jaxvlm.weights.rules import Rule, export_tensors, import_tensors
from jaxvlm.weights.tensors import DictSource, TensorSource, TensorSpec
from jaxvlm.weights.writing import write_tensors
from tests.parity import tiny_llava


def random_params(config, dtype=np.float32):
    random = np.random.default_rng(0)
    model = build_model(config)
    return model, jax.tree.map(lambda x: random.standard_normal(x.shape).astype(dtype), model.abstract)


@pytest.mark.parametrize("config", [tiny_llava.tiny_config(), tiny_llava.tied_config()], ids=["untied", "tied"])
@pytest.mark.parametrize("prefixes", [MEMORY, HUB], ids=["memory", "hub"])
def test_export_then_import_is_bit_equal(config, prefixes):
    model, params = random_params(config, np.float16)  # the dtype goes through as it is
    rules, sizes = llava_rules(config, prefixes), llava_sizes(config)
    back = import_tensors(rules, export_tensors(rules, params, sizes), model.abstract, sizes)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for path, want in paths(params).items():
        have = paths(back)[path]
        assert have.dtype == np.float16 and np.array_equal(have, want), path


@pytest.mark.torch
def test_import_then_export_is_bit_equal():
    from tests.parity import pairs

    pair = pairs.make_pair(tiny_llava.tiny_config())
    want = pairs.hf_tensors(pair.hf)
    have = export_tensors(llava_rules(pair.model.config), pair.params, llava_sizes(pair.model.config))
    assert set(have) == set(want)
    for name, tensor in want.items():
        assert np.array_equal(have[name], tensor), name


def test_a_row_by_hand():
    rules = (Rule("h.{i}.w", "blocks/w", "(N H) D -> D N H"), Rule("n", "norm"))
    abstract = {"blocks": {"w": np.zeros((2, 5, 3, 4))}, "norm": np.zeros(5)}
    hf = {"h.0.w": np.arange(60.0).reshape(12, 5), "h.1.w": np.ones((12, 5)), "n": np.ones(5)}
    got = import_tensors(rules, hf, abstract, {})
    assert got["blocks"]["w"][0, 1, 2, 3] == hf["h.0.w"][2 * 4 + 3, 1]


def test_all_problems_come_in_one_message():
    config = tiny_llava.tiny_config()
    model, params = random_params(config)
    rules, sizes = llava_rules(config), llava_sizes(config)
    hf = dict(export_tensors(rules, params, sizes))
    hf["model.extra.weight"] = np.zeros((3, 2))
    del hf["model.language_model.layers.1.mlp.up_proj.weight"]
    hf["model.multi_modal_projector.linear_1.weight"] = np.zeros((40, 48))
    with pytest.raises(UserError) as error:
        import_tensors(rules, hf, model.abstract, sizes)
    message = str(error.value)
    assert "3 problems" in message
    assert "layers.1.mlp.up_proj.weight is missing, for language/blocks/mlp/up/w (3, 48, 56)" in message
    assert "linear_1.weight is (40, 48), expected (48, 40) for projector/fc1/w (40, 48)" in message
    assert "model.extra.weight (3, 2) has no place" in message


def test_a_weight_without_a_row_is_an_error():
    config = tiny_llava.tiny_config()
    tied = dataclasses.replace(config, language=dataclasses.replace(config.language, tie_embeddings=True))
    _, params = random_params(config)
    with pytest.raises(UserError, match=r"language/head/w \(101, 48\) has no rule"):
        export_tensors(llava_rules(tied), params, llava_sizes(tied))


class Unread(TensorSource):
    """Specs without tensors."""

    def where(self, name):
        return "some.file"

    def __getitem__(self, name):
        pytest.fail(f"{name} was read")


def specs(**shapes):
    return {name: TensorSpec(shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}


def test_nothing_is_read_when_something_does_not_fit():
    rules = [Rule(name, f"our_{name}", "A B -> B A") for name in ("right", "wrong", "lost", "whole")]
    abstract = {f"our_{rule.hf}": jax.ShapeDtypeStruct((3, 2), jnp.bfloat16) for rule in rules}
    source = Unread(
        specs(
            right=((2, 3), np.float32),
            wrong=((3, 2), np.float32),
            whole=((2, 3), np.int8),
            more=((7,), np.float32),
            position_ids=((7,), np.int64),
        )
    )
    with pytest.raises(UserError) as error:
        import_tensors(rules, source, abstract, {}, ignored=["position_.*"])
    assert str(error.value) == (
        "weights do not fit, 4 problems: lost is missing, for our_lost (3, 2); "
        "wrong is (3, 2), expected (2, 3) for our_wrong (3, 2) (some.file); "
        "whole is int8, expected floats for our_whole (3, 2) (some.file); "
        "more (7,) has no place in the model (some.file); "
        "take weights of the recipe's model, or change config.model to theirs"
    )


def test_what_is_ignored_must_match_the_whole_name():
    hf = {"w": np.ones(2), "a.inv_freq": np.ones(3)}
    abstract = {"w": np.zeros(2)}
    assert set(import_tensors([Rule("w", "w")], hf, abstract, {}, ignored=[r".*\.inv_freq"])) == {"w"}
    with pytest.raises(UserError, match=r"1 problems: a.inv_freq \(3,\) has no place"):
        import_tensors([Rule("w", "w")], hf, abstract, {}, ignored=["inv_freq"])


def test_a_long_list_is_cut_in_each_kind():
    hf = {f"their_{i}": np.ones(2) for i in range(45)}
    rule, abstract = Rule("h.{i}.w", "w"), {"w": np.zeros((31, 5))}
    with pytest.raises(UserError) as error:
        import_tensors([rule], hf, abstract, {})
    message = str(error.value)
    assert "76 problems" in message and "and 11 more; their_0 (2,) has no place" in message and "and 25 more" in message
    assert message.count("is missing") == message.count("has no place") == 20


def placed(model, mesh, dtype):
    """The abstract model with shardings."""
    shardings = paths(named_shardings(mesh, Rules(), model.abstract, model.axes))
    leaves = paths(model.abstract)
    return from_paths(
        {path: jax.ShapeDtypeStruct(leaves[path].shape, dtype, sharding=shardings[path]) for path in leaves}
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)], ids=str)
def test_files_onto_a_mesh(tmp_path, monkeypatch, mesh, dtype):
    monkeypatch.setattr(rules_module, "_JOB_BYTES", 700)
    monkeypatch.setattr(rules_module, "_TILE", 5)
    config = tiny_llava.tiny_config()
    model, params = random_params(config)
    rules, sizes = llava_rules(config), llava_sizes(config)
    write_tensors(tmp_path, export_tensors(rules, params, sizes), shard_bytes=100_000)
    mesh = make_mesh(MeshConfig(*mesh), jax.devices()[: np.prod(mesh)])
    got = import_tensors(rules, open_tensors(tmp_path), abstract := placed(model, mesh, dtype), sizes)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    for path, want in paths(params).items():
        have = paths(got)[path]
        assert (have.dtype, have.sharding) == (dtype, paths(abstract)[path].sharding), path
        assert np.array_equal(have, want.astype(dtype)), path
    back = export_tensors(rules, got, sizes)
    for name, tensor in export_tensors(rules, jax.tree.map(lambda x: x.astype(dtype), params), sizes).items():
        assert back.spec(name) == (tensor.shape, tensor.dtype)
        assert np.array_equal(back[name], tensor), name


class Counted(DictSource):
    """Remembers which tensors were asked for."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


class OneHost:
    """A sharding of which only some devices are of this host."""

    def __init__(self, sharding, devices):
        self.sharding, self.devices = sharding, devices

    def addressable_devices_indices_map(self, shape):
        return {d: i for d, i in self.sharding.devices_indices_map(shape).items() if d in self.devices}


@pytest.mark.parametrize(
    ("axes", "bytes_read"),
    [
        # L D N H = 4, 10, 6, 3 of 2 bytes; the host has the first of two along fsdp, and both along tensor.
        ((None, "fsdp", "tensor", None), 4 * 5 * 6 * 3 * 2),
        ((None, None, "fsdp", None), 4 * 10 * 3 * 3 * 2),
        ((None, None, "tensor", None), 4 * 10 * 6 * 3 * 2),
        (("fsdp", None, "tensor", None), 2 * 10 * 6 * 3 * 2),
        ((None, None, None, None), 4 * 10 * 6 * 3 * 2),  # two replicas, read once
    ],
)
def test_a_host_reads_only_what_it_holds(monkeypatch, axes, bytes_read):
    mesh = make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])
    sharding = OneHost(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)), set(jax.devices()[:2]))
    copied, copy = [], rules_module._copy

    def counting(into, view):
        copied.append(view.nbytes)
        copy(into, view)

    def held(shape, sharding, callback, dtype):
        return {d.id: (i, callback(i)) for d, i in sharding.addressable_devices_indices_map(shape).items()}

    monkeypatch.setattr(rules_module, "_copy", counting)
    monkeypatch.setattr(jax, "make_array_from_callback", held)
    monkeypatch.setattr(jax, "block_until_ready", lambda x: x)
    source = Counted({f"h.{i}.w": np.random.default_rng(i).standard_normal((18, 10)).astype("f2") for i in range(4)})
    # Not jax.ShapeDtypeStruct, which takes nothing but a true sharding.
    abstract = {"w": types.SimpleNamespace(shape=(4, 10, 6, 3), dtype=np.dtype(np.float16), sharding=sharding)}
    got = import_tensors([Rule("h.{i}.w", "w", "(N H) D -> D N H")], source, abstract, {})["w"]
    whole = np.stack([source[f"h.{i}.w"].reshape(6, 3, 10).transpose(2, 0, 1) for i in range(4)])
    assert len(got) == 2 and all(np.array_equal(part, whole[index]) for index, part in got.values())
    assert sum(copied) == bytes_read


def test_a_host_opens_no_layer_that_it_does_not_hold():
    mesh = make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    source = Counted({f"h.{i}.w": np.ones((3, 5), np.float32) for i in range(4)})
    abstract = jax.ShapeDtypeStruct((4, 5, 3), np.float32, sharding=sharding)
    leaf = rules_module._Leaf(Rule("h.{i}.w", "w", "A B -> B A"), abstract, source, {})
    box = leaf.boxes[0]
    jobs = list(leaf._jobs(source, {box: np.empty((2, 5, 3), np.float32)}))
    assert [name for name, _ in jobs] == ["h.0.w", "h.1.w"] and not source.read


class Computed(TensorSource):
    """Tensors that are costly to make."""

    def __init__(self, tensors):
        super().__init__({name: TensorSpec(x.shape, x.dtype) for name, x in tensors.items()})
        self.tensors, self.made = tensors, []

    def __getitem__(self, name):
        self.made.append(name)
        return self.tensors[name]


def test_a_computed_tensor_is_made_once(monkeypatch):
    monkeypatch.setattr(rules_module, "_JOB_BYTES", 20)
    mesh = make_mesh(MeshConfig(1, 4, 2))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp", "tensor"))
    source = Computed({f"h.{i}.w": np.arange(48.0, dtype=np.float32).reshape(6, 8) + i for i in range(3)})
    abstract = {"w": jax.ShapeDtypeStruct((3, 8, 6), np.float32, sharding=sharding)}
    got = import_tensors([Rule("h.{i}.w", "w", "A B -> B A")], source, abstract, {})["w"]
    assert np.array_equal(got, np.stack([x.T for x in source.tensors.values()]))
    assert sorted(source.made) == ["h.0.w", "h.1.w", "h.2.w"]


@pytest.mark.parametrize("to", [np.uint8, np.float32, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=str)
def test_copies_of_every_transposition(monkeypatch, dtype, to):
    monkeypatch.setattr(rules_module, "_TILE", 4)
    for shape in [(), (7,), (5, 9), (3, 1, 6), (2, 5, 9, 3)]:
        array = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
        for order in itertools.permutations(range(len(shape))):
            view = array.transpose(order)
            into = np.zeros(view.shape, to)
            rules_module._copy(into, view)
            assert np.array_equal(into, view.astype(to)), (shape, order)
            if shape == (2, 5, 9, 3):
                into[...] = 0
                rules_module._copy(into[:, 1:3], view[:, 1:3])
                want = view.astype(to)
                want[:, :1] = want[:, 3:] = 0
                assert np.array_equal(into, want), (shape, order)


def test_an_exported_tensor_is_made_when_it_is_asked_for(monkeypatch):
    made = []
    monkeypatch.setattr(rules_module, "_copy", lambda into, view: made.append(view.shape))
    params = {"blocks": {"w": jnp.ones((3, 5, 2, 4))}, "scale": jnp.ones(())}
    source = export_tensors([Rule("h.{i}.w", "blocks/w", "(N H) D -> D N H"), Rule("s", "scale")], params, {})
    assert list(source) == ["h.0.w", "h.1.w", "h.2.w", "s"] and "h.1.w" in source and not made
    assert source.spec("h.1.w") == ((8, 5), np.dtype(np.float32)) and source.spec("s").shape == ()
    assert source["h.1.w"].shape == (8, 5) and source["s"].shape == ()
    assert made == [(8, 5), ()]
