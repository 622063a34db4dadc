"""Which files of a repository on the hub are downloaded: one form of the weights."""

import pytest

from jaxvlm.weights import hub

LISTINGS = {  # all files, and those that are left out
    "llama2": (
        "config.json tokenizer.model model-00001-of-00002.safetensors model-00002-of-00002.safetensors "
        "model.safetensors.index.json pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin "
        "pytorch_model.bin.index.json README.md",
        "pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin README.md",
    ),
    "clip_h": (
        "config.json model.safetensors open_clip_model.safetensors open_clip_pytorch_model.bin pytorch_model.bin",
        "open_clip_model.safetensors open_clip_pytorch_model.bin pytorch_model.bin",
    ),
    "mistral": (
        "config.json consolidated.safetensors model-00001-of-00001.safetensors model.safetensors.index.json",
        "consolidated.safetensors",
    ),
    "pickles": ("config.json pytorch_model.bin flax_model.msgpack tf_model.h5", "flax_model.msgpack tf_model.h5"),
    "one_file_of_any_name": ("config.json weights.safetensors pytorch_model.bin", "pytorch_model.bin"),
    "projector": ("config.json mm_projector.bin optimizer.pt", "optimizer.pt"),
    "adapter": (
        "adapter_config.json adapter_model.bin adapter_model.safetensors non_lora_trainables.bin",
        "adapter_model.bin",
    ),
    "folder_inside": (
        "config.json model.safetensors tower/config.json tower/model.safetensors tower/pytorch_model.bin",
        "tower/pytorch_model.bin",
    ),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_one_form_of_the_weights(name):
    files, left = (text.split() for text in LISTINGS[name])
    assert sorted(hub.chosen_files(files)) == sorted(set(files) - set(left))


def test_without_a_network_the_cache_is_used(monkeypatch):
    def fail(name, *, revision):
        raise ConnectionError("no network")

    def cached(name, *, revision, local_files_only):
        assert local_files_only
        return "/cache/somebody/model"

    monkeypatch.setattr("huggingface_hub.list_repo_files", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    assert str(hub.find_source("somebody/model")) == "/cache/somebody/model"
