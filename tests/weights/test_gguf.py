"""GGUF files: tiny ones as llama.cpp's converter writes them, and SmolLM2-135M-Instruct as it is published."""

import dataclasses
import math
import sys

import gguf
import jax
import numpy as np
import pytest
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from jaxvlm.batch import Batch
from jaxvlm.config import DecoderConfig, RopeScaling
from jaxvlm.data.text.gguf_tokenizer import gguf_tokenizer
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.gguf_metadata import read_metadata
from jaxvlm.inference.decoding import decode
from jaxvlm.inference.programs import Programs
from jaxvlm.weights.gguf_file import GGUFSource, gguf_decoder_config
from jaxvlm.weights.hf import decoder
from jaxvlm.weights.rules import import_tensors, prefixed
from tests import tiny
from tests.layouts import empty_batch, slots
from tests.smollm2 import smollm2_file

# Q8_0 wants rows of a multiple of 32 numbers: D, F and N * H.
V, D, F, L, N, K, H = 101, 64, 160, 3, 4, 2, 24
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
RULES = (*prefixed(decoder.RULES, "model.", ""), *prefixed(decoder.HEAD, "lm_head.", ""))


def hf_tensors(architecture: str, *, tied: bool = False) -> dict[str, np.ndarray]:
    """Random weights under the names of Hugging Face's module, norms too."""
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)} | (
        {} if tied else {"lm_head.weight": (V, D)}
    )
    for i in range(L):
        block = {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
        block |= {"self_attn.q_proj.weight": (N * H, D), "self_attn.o_proj.weight": (D, N * H)}
        block |= {"self_attn.k_proj.weight": (K * H, D), "self_attn.v_proj.weight": (K * H, D)}
        block |= {"mlp.gate_proj.weight": (F, D), "mlp.up_proj.weight": (F, D), "mlp.down_proj.weight": (D, F)}
        if architecture == "qwen2":
            block |= {"self_attn.q_proj.bias": (N * H,), "self_attn.k_proj.bias": (K * H,)}
            block |= {"self_attn.v_proj.bias": (K * H,)}
        if architecture == "qwen3":
            block |= {"self_attn.q_norm.weight": (H,), "self_attn.k_norm.weight": (H,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Source: llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def write_header(path, architecture: str, **changes) -> gguf.GGUFWriter:
    """A writer with the numbers of the tiny model; `changes` replaces some or adds others, __ stands for a point."""
    writer = gguf.GGUFWriter(path, architecture)
    numbers = {"block_count": L, "embedding_length": D, "feed_forward_length": F, "context_length": 77}
    numbers |= {"attention.head_count": N, "attention.head_count_kv": K}
    numbers |= {"attention.key_length": H, "attention.value_length": H, "rope.dimension_count": H}
    numbers |= {"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 5e5}
    for key, value in (numbers | {name.replace("__", "."): value for name, value in changes.items()}).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](f"{architecture}.{key}", value)
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path, architecture, tensors, *, quantised=False, more=None, **changes) -> str:
    """A file as llama.cpp's converter makes it, under the names of the package's own table."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], L)
    writer = write_header(path, architecture, **changes)
    for hf, array in tensors.items():
        if architecture == "llama" and ".q_proj." in hf:
            array = permute(array, N)
        if architecture == "llama" and ".k_proj." in hf:
            array = permute(array, K)
        name = names.get_name(hf, try_suffixes=(".weight", ".bias"))
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    finish(writer)
    return str(path)


def config(**changes) -> DecoderConfig:
    """The config of the tiny "llama"."""
    whole = DecoderConfig(V, D, F, L, N, K, H, 1e-6, 5e5, None, tie_embeddings=False, qkv_bias=False, qk_norm=False)
    return dataclasses.replace(whole, **changes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_come_back_bit_equal(architecture, tmp_path):
    tensors = hf_tensors(architecture)
    path = write_model(tmp_path / "a.gguf", architecture, tensors)
    source = GGUFSource(path)
    assert set(source) == set(tensors) and len(source) == len(tensors)
    for name, array in tensors.items():
        assert source[name].dtype == np.float32
        np.testing.assert_array_equal(source[name], array, err_msg=name)
        assert source.spec(name) == (array.shape, np.dtype(np.float32)), name
        assert source.where(name) == path
    assert gguf_decoder_config(source) == config(
        qkv_bias=architecture == "qwen2", qk_norm=architecture == "qwen3", architecture=architecture
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_fill_the_decoder(architecture, tmp_path):
    tensors = hf_tensors(architecture)
    source = GGUFSource(write_model(tmp_path / "a.gguf", architecture, tensors))
    model = text_model(gguf_decoder_config(source))
    params = import_tensors(RULES, source, model.abstract["language"], {})
    w_LDKH = np.asarray(params["blocks"]["attention"]["k"]["w"])
    np.testing.assert_array_equal(w_LDKH[1, :, 1, :], tensors["model.layers.1.self_attn.k_proj.weight"][H:].T)


def test_quantised_tensors_come_back_within_their_error(tmp_path):
    tensors = hf_tensors("llama", tied=True)
    source = GGUFSource(write_model(tmp_path / "a.gguf", "llama", tensors, quantised=True))
    for name, array in tensors.items():
        # Half a step of 1/127 of the largest number in a block, whose scale is a float16.
        error = np.abs(array).max() / 127 * (0.5 + 127 * 2**-11) if array.ndim == 2 else 0.0
        np.testing.assert_allclose(source[name], array, rtol=0, atol=error, err_msg=name)
        assert source.spec(name).shape == array.shape
    assert gguf_decoder_config(source) == config(tie_embeddings=True)


def test_a_bias_of_llama_is_permuted_too(tmp_path):
    tensors = hf_tensors("llama")
    for i in range(L):
        for part, size in (("q", N * H), ("k", K * H), ("v", K * H)):
            tensors[f"model.layers.{i}.self_attn.{part}_proj.bias"] = np.arange(size, dtype=np.float32)
    source = GGUFSource(write_model(tmp_path / "a.gguf", "llama", tensors))
    for part, size in (("q", N * H), ("k", K * H), ("v", K * H)):
        np.testing.assert_array_equal(source[f"model.layers.2.self_attn.{part}_proj.bias"], np.arange(size))
    assert gguf_decoder_config(source) == config(qkv_bias=True, architecture="qwen2")


def rope_factors(factor: float, low: float, high: float, original: int) -> np.ndarray:
    """Source: llama.cpp, convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    factors = []
    for frequency in 1.0 / 5e5 ** (np.arange(0, H, 2, dtype=np.float32) / H):
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_llama3_scaling_is_recognised_and_another_refused(tmp_path):
    tensors, factors = hf_tensors("llama"), rope_factors(32.0, 1.0, 4.0, 8192)
    assert len(set(factors)) > 2, "no frequency in the blended range"
    path = write_model(tmp_path / "a.gguf", "llama", tensors, more={"rope_freqs.weight": factors})
    source = GGUFSource(path)
    assert set(source) == set(tensors)
    assert gguf_decoder_config(source) == config(rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))
    other = {"rope_freqs.weight": rope_factors(32.0, 1.0, 2.0, 8192)}
    with pytest.raises(UserError, match="rope_freqs.weight has other factors"):
        gguf_decoder_config(GGUFSource(write_model(tmp_path / "b.gguf", "llama", tensors, more=other)))
    none = {"rope_freqs.weight": np.ones(H // 2, np.float32)}
    assert gguf_decoder_config(GGUFSource(write_model(tmp_path / "c.gguf", "llama", tensors, more=none))) == config()


def test_scalings_of_the_metadata(tmp_path):
    """The numbers of a Qwen2.5 with YaRN by 4, and of a Vicuna of 16k positions."""
    tensors, changes = hf_tensors("llama"), {"rope__scaling__factor": 4.0}
    linear = write_model(tmp_path / "a.gguf", "llama", tensors, **changes, rope__scaling__type="linear")
    assert gguf_decoder_config(GGUFSource(linear)) == config(rope_scaling=RopeScaling(4.0, kind="linear"))
    changes |= {"rope__scaling__type": "yarn", "rope__scaling__original_context_length": 32768}
    yarn = GGUFSource(write_model(tmp_path / "b.gguf", "llama", tensors, **changes))
    scaling = RopeScaling(4.0, 1.0, 32.0, 32768, kind="yarn", attention_factor=0.1 * math.log(4.0) + 1)
    assert gguf_decoder_config(yarn) == config(rope_scaling=scaling)
    del changes["rope__scaling__original_context_length"]
    with pytest.raises(UserError, match="rope.scaling.original_context_length"):
        gguf_decoder_config(GGUFSource(write_model(tmp_path / "d.gguf", "llama", tensors, **changes, context_length=0)))
    changes["rope__scaling__yarn_ext_factor"] = 0.5
    with pytest.raises(UserError, match='scaling "yarn" by 4.0 with rope.scaling.yarn_ext_factor = 0.5'):
        gguf_decoder_config(GGUFSource(write_model(tmp_path / "c.gguf", "llama", tensors, **changes)))


def test_a_llama_with_all_biases(tmp_path):
    tensors = hf_tensors("llama")
    for i in range(L):
        for part, size in (("q", N * H), ("k", K * H), ("v", K * H), ("o", D)):
            tensors[f"model.layers.{i}.self_attn.{part}_proj.bias"] = np.arange(size, dtype=np.float32)
    source = GGUFSource(write_model(tmp_path / "a.gguf", "llama", tensors))
    assert gguf_decoder_config(source) == config(qkv_bias=True, out_bias=True)


def test_what_the_decoder_does_not_have_is_refused_at_once(tmp_path):
    changes = {"rope__scaling__type": "longrope", "rope__scaling__factor": 4.0, "attention__sliding_window": 4096}
    changes |= {"rope__dimension_count": 12}
    source = GGUFSource(write_model(tmp_path / "a.gguf", "qwen2", hf_tensors("qwen2"), **changes))
    with pytest.raises(UserError) as error:
        gguf_decoder_config(source)
    for part in (
        '"longrope" by 4.0',
        "qwen2.attention.sliding_window = 4096",
        "dimension_count = 12, expected the head's 24",
    ):
        assert part in str(error.value)


def test_numbers_that_are_absent_or_many(tmp_path):
    tensors = hf_tensors("llama")
    finish(write_header(tmp_path / "b.gguf", "llama", rope__scaling__type="longrope", rope__scaling__factor=2.0))
    with pytest.raises(UserError, match=r'no weights .*"longrope" by 2.0'):
        gguf_decoder_config(GGUFSource(tmp_path / "b.gguf"))
    source = GGUFSource(write_model(tmp_path / "a.gguf", "llama", tensors, attention__head_count_kv=[2, 2, 2]))
    with pytest.raises(UserError, match=r"head_count_kv = \[2, 2, 2\], expected one number"):
        gguf_decoder_config(source)
    with pytest.raises(UserError, match="has no metadata llama.expert_used_count"):
        source.number("expert_used_count")


def test_other_architectures_and_tensors_are_named(tmp_path):
    finish(write_header(tmp_path / "a.gguf", "gemma3"))
    with pytest.raises(UserError, match='architecture "gemma3"; supported are llama, qwen2, qwen3'):
        GGUFSource(tmp_path / "a.gguf")
    experts = {f"blk.{i}.ffn_gate_exps.weight": np.zeros((2, F, D), np.float32) for i in range(24)}
    path = write_model(tmp_path / "b.gguf", "llama", hf_tensors("llama"), more=experts)
    with pytest.raises(UserError, match=r"24 tensors that .*: blk.0.ffn_gate_exps.weight, .* and 4 more"):
        GGUFSource(path)


def test_files_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is not a file"):
        GGUFSource(tmp_path / "absent.gguf")
    whole = (tmp_path / "whole.gguf", tmp_path / "cut.gguf", tmp_path / "text.gguf")
    write_model(whole[0], "llama", hf_tensors("llama"))
    content = whole[0].read_bytes()
    whole[1].write_bytes(content[: len(content) // 2])
    whole[2].write_text("version https://git-lfs.github.com/spec/v1")
    for path in whole[1:]:
        with pytest.raises(UserError, match="cannot be read as GGUF"):
            GGUFSource(path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[gguf\]'"):
        GGUFSource(whole[0])


def test_a_quantisation_that_cannot_be_read_is_named(tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_K
    writer = write_header(tmp_path / "a.gguf", "llama")
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer.add_tensor("token_embd.weight", np.zeros((V, size), np.uint8), raw_dtype=kind)
    finish(writer)
    source = GGUFSource(tmp_path / "a.gguf")
    assert source.spec("model.embed_tokens.weight").shape == (V, block)
    with pytest.raises(UserError, match="token_embd.weight is of type Q8_K"):
        source["model.embed_tokens.weight"]


def write_tokenizer(path, kind: str, tokens: list[str], types: list[int], **more) -> str:
    """A file with a vocabulary and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in ({"block_count": L, "attention.head_count": N, "embedding_length": D}).items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in more.items():
        getattr(writer, f"add_{name}")(value)
    finish(writer)
    return str(path)


def byte_level_vocabulary() -> tuple[list[str], list[int]]:
    tokens = ["<|begin|>", "<|end|>", "<think>", *sorted(ByteLevel.alphabet()), "12", "123", "ĠĠ", "Ġ1"]
    return tokens, [3, 3, 4] + [1] * (len(tokens) - 3)


def byte_level(path, pre: str, **more):
    tokens, types = byte_level_vocabulary()
    merges = ["1 2", "12 3", "Ġ Ġ", "Ġ 1"]
    more = {"tokenizer_pre": pre, "token_merges": merges, "bos_token_id": 0, "eos_token_id": 1} | more
    return gguf_tokenizer(write_tokenizer(path, "gpt2", tokens, types, **more))


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["a", "ĠĠ", "1", "2", "3", "4", "<|end|>", "<think>"]),
        ("qwen2", ["a", "Ġ", "Ġ", "1", "2", "3", "4", "<|end|>", "<think>"]),
        ("llama-bpe", ["<|begin|>", "a", "Ġ", "Ġ", "123", "4", "<|end|>", "<think>"]),
    ],
)
def test_words_are_cut_as_the_family_does(pre, pieces, tmp_path):
    tokenizer = byte_level(tmp_path / "a.gguf", pre)
    text = "a  1234<|end|><think>"
    ids = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == pieces
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a  1234<think>"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")


def test_the_file_says_whether_a_text_begins_with_bos(tmp_path):
    assert byte_level(tmp_path / "a.gguf", "smollm", add_bos_token=True)("a").input_ids[0] == 0
    assert byte_level(tmp_path / "b.gguf", "llama-bpe", add_bos_token=False)("a").input_ids[0] != 0


def test_a_file_in_use_is_not_read_again(tmp_path):
    path = tmp_path / "a.gguf"
    finish(write_header(path, "llama"))
    first = read_metadata(path)
    assert read_metadata(path) is first
    finish(write_header(path, "llama", block_count=7))
    assert read_metadata(path) is not first


def test_sentencepiece(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁", "a", "b", "ab", "▁ab"]
    types = [2, 3, 3] + [6] * 256 + [1] * 6
    more = {"token_scores": [-float(i) for i in range(len(tokens))], "bos_token_id": 1, "eos_token_id": 2}
    more["unk_token_id"] = 0
    tokenizer = gguf_tokenizer(write_tokenizer(tmp_path / "a.gguf", "llama", tokens, types, **more))
    ids = tokenizer("ab aé</s>").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁ab", "▁a", "<0xC3>", "<0xA9>", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab aé"
    path = write_tokenizer(tmp_path / "b.gguf", "llama", tokens, types, add_space_prefix=False, **more)
    bare = gguf_tokenizer(path)
    assert bare.convert_ids_to_tokens(bare("ab a").input_ids) == ["<s>", "ab", "▁a"]
    assert bare.decode(bare("ab a").input_ids, skip_special_tokens=True) == "ab a"


def test_tokenizers_that_are_not_known(tmp_path):
    with pytest.raises(UserError, match='tokenizer.ggml.pre = "tekken", supported are smollm, qwen2, llama-bpe'):
        byte_level(tmp_path / "a.gguf", "tekken")
    with pytest.raises(UserError, match='tokenizer.ggml.model = "t5"'):
        gguf_tokenizer(write_tokenizer(tmp_path / "b.gguf", "t5", ["a"], [1]))
    more = {"tokenizer_pre": "qwen2", "token_merges": ["a a"]}
    with pytest.raises(UserError, match="1 of tokenizer.ggml.tokens occur twice"):
        gguf_tokenizer(write_tokenizer(tmp_path / "c.gguf", "gpt2", ["a", "a"], [1, 1], **more))


# The published SmolLM2-135M-Instruct, quantised to Q4_1 and Q8_0.


@pytest.fixture(scope="module")
def smollm2() -> GGUFSource:
    return GGUFSource(smollm2_file())


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2):
    return gguf_tokenizer(smollm2.metadata)


@pytest.fixture(scope="module")
def smollm2_model(smollm2):
    model = text_model(gguf_decoder_config(smollm2))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.abstract | {"language": {}})
    params["language"] = import_tensors(RULES, smollm2, model.abstract["language"], {})
    return model, jax.device_put(params)


def text_model(language: DecoderConfig):
    """A model with the given decoder behind a tiny image encoder that text does not use."""
    return build_model(
        dataclasses.replace(tiny.config(tiny.recipe()).model, language=language, compute_dtype="float32")
    )


def text_batch(ids: list[int], tokens: int) -> Batch:
    """One row with one text, then padding, and no image slots."""
    batch = empty_batch(slots(21, 9), tokens=tokens, images=0)
    batch.tokens[0, : len(ids)], batch.positions[0, : len(ids)], batch.segments[0, : len(ids)] = ids, range(len(ids)), 1
    return batch


def test_smollm2_config(smollm2):
    # As config.json of HuggingFaceTB/SmolLM2-135M-Instruct has it.
    expected = DecoderConfig(49152, 576, 1536, 30, 9, 3, 64, 1e-5, 1e5, None, True, False, False)
    assert gguf_decoder_config(smollm2) == expected


def test_smollm2_tokenizer(smollm2_tokenizer):
    t = smollm2_tokenizer
    assert len(t) == 49152
    assert (t.bos_token, t.eos_token, t.unk_token, t.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|im_end|>",
    )
    assert t.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    for text in (
        "Hello  world",
        "  two\n\n\ttabs ",
        "héllo 漢字 🙂 don't",
        " x\r\n",
        "2024: 12,345 ½",
        "<|im_start|>a<|im_end|>",
    ):
        assert t.decode(t(text).input_ids) == text
    assert t.convert_ids_to_tokens(t("in  2024").input_ids) == ["in", "ĠĠ", "2", "0", "2", "4"]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    prompt = t.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = t(prompt).input_ids
    assert (ids.count(1), ids.count(2)) == (3, 2)


@pytest.fixture(scope="module")
def smollm2_of_transformers(smollm2):
    """transformers reads the file with code of its own, the order of rows included."""
    import torch

    return transformers.LlamaForCausalLM.from_pretrained(
        smollm2.path.parent, gguf_file=smollm2.path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.nightly  # test_tensors_come_back_bit_equal asserts the order of rows
@pytest.mark.torch
def test_smollm2_has_the_weights_of_transformers(smollm2, smollm2_of_transformers):
    theirs = dict(smollm2_of_transformers.named_parameters())
    assert set(theirs) == set(smollm2)
    for name, weight in theirs.items():
        np.testing.assert_array_equal(smollm2[name], weight.detach().numpy(), err_msg=name)


@pytest.mark.nightly  # tests/inference/test_generate_from.py asks the same file
@pytest.mark.torch
def test_smollm2_has_the_logits_of_transformers(smollm2_tokenizer, smollm2_model, smollm2_of_transformers):
    import torch

    ids = smollm2_tokenizer("The capital of France is Paris, and that of Japan is").input_ids
    model, params = smollm2_model
    batch = text_batch(ids, 16)
    ours = jax.jit(lambda params: (vlm := model.bind(params)).logits(vlm.hidden(batch)))(params)[0, : len(ids)]
    with torch.no_grad():
        theirs = smollm2_of_transformers(input_ids=torch.tensor([ids])).logits[0].numpy()
    print(f"largest logit {np.abs(theirs).max():.1f}, largest error {np.abs(ours - theirs).max():.1e}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-4)  # measured 1.3e-4, at logits up to 28


# Without its question word the model, in either framework, takes the sentence for French and speaks of travels. A token
# takes 3 s as tests compile (tests/xla.py), so that answer is cut short.
@pytest.mark.nightly  # as above
@pytest.mark.torch
@pytest.mark.parametrize(
    ("question", "word", "N"), [("What is the capital of France?", "Paris", 24), ("The capital of France is", "", 6)]
)
def test_smollm2_answers(question, word, N, smollm2_tokenizer, smollm2_model, smollm2_of_transformers):
    import torch

    messages = [{"role": "user", "content": question}]
    prompt = smollm2_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = smollm2_tokenizer(prompt).input_ids
    model, params = smollm2_model
    end = smollm2_tokenizer.eos_token_id
    tokens_BN, lengths_B = decode(Programs(model, params, (end,)), text_batch(ids, 48), np.zeros(1, np.int32), N)
    ours = tokens_BN[0, : lengths_B[0]].tolist()
    given = torch.tensor([ids])
    settings = {"max_new_tokens": N, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    theirs = smollm2_of_transformers.generate(given, attention_mask=torch.ones_like(given), **settings)[0, len(ids) :]
    print(repr(smollm2_tokenizer.decode(ours)))
    assert ours == [id for id in theirs.tolist() if id != end]
    assert word in smollm2_tokenizer.decode(ours)
