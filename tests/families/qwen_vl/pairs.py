"""Tiny Qwen-VLs twice: Hugging Face's in torch and ours, with the same random weights; every axis of another size."""

import dataclasses
import io
import math

import numpy as np
import torch
import transformers
from einops import rearrange
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from jaxvlm.batch import Batch
from jaxvlm.data.media.sizes import read_size
from jaxvlm.data.rows.packing import expand, fill_row
from jaxvlm.data.sample import Sample
from jaxvlm.families.build import build_model
from jaxvlm.families.qwen_vl.config import QwenVLConfig, QwenVLMedia, VideoConfig
from jaxvlm.families.qwen_vl.hf_config import HF_KINDS, read_qwen
from jaxvlm.families.qwen_vl.layout import make_layout
from jaxvlm.families.qwen_vl.videos import sample_frames
from jaxvlm.families.qwen_vl.weights import qwen_rules, qwen_sizes
from jaxvlm.media import Medium, Size, Video
from jaxvlm.models.vlm import Model
from jaxvlm.weights.rules import import_tensors

IMAGE_TOKEN, VIDEO_TOKEN = 7, 8  # placeholder ids; text never draws them
VOCAB = 131
PROCESSORS = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
MEDIA = QwenVLMedia(units=256, min_pixels=16, max_pixels=100_000)
WITH_VIDEOS = dataclasses.replace(MEDIA, video=VideoConfig(2.0, 4, 8, min_pixels=64, max_pixels=4096))


def hf_config(kind: str, *, vocab_size: int = VOCAB, **root):
    """A tiny config of transformers: patches of 4 pixels, 4 layers each, DeepStack or windows by kind."""
    text = {"vocab_size": vocab_size, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "bos_token_id": None}
    text |= {"eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 4096}
    vision = {"depth": 4, "num_heads": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    rope = {"rope_type": "default", "rope_theta": 1e4}
    if kind == "qwen2_vl":
        rope |= {"mrope_section": [1, 2, 1]}
        vision |= {"embed_dim": 36, "hidden_size": 48, "mlp_ratio": 2}
    elif kind == "qwen2_5_vl":
        rope |= {"mrope_section": [1, 2, 1]}
        vision |= {"hidden_size": 36, "intermediate_size": 44, "out_hidden_size": 48, "tokens_per_second": 2}
        vision |= {"window_size": 16, "fullatt_block_indexes": [1, 3]}
    else:
        text["head_dim"] = 12
        rope |= {"mrope_section": [2, 2, 2], "mrope_interleaved": True}
        vision |= {"hidden_size": 36, "intermediate_size": 44, "out_hidden_size": 48}
        vision |= {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}
    ids = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN, "tie_word_embeddings": False}
    ids |= {"vision_start_token_id": 9, "vision_end_token_id": 10} | root
    return HF_KINDS[kind].config(text_config=text | {"rope_parameters": rope}, vision_config=vision, **ids)


def our_config(hf) -> QwenVLConfig:
    """Ours for a config of transformers."""
    found = read_qwen(hf.to_dict(), "test", None)
    own = (found.kind, found.vision, found.projector, found.tokens_per_second)
    return QwenVLConfig("qwen_vl", found.language, "float32", "none", *own)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model in both frameworks."""

    hf: torch.nn.Module
    model: Model
    params: dict


def randomise(hf: torch.nn.Module, seed: int = 0) -> None:
    """Random weights everywhere, norms and biases too: transformers starts those at one and zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                is_scale = name.endswith("weight") and any(x in name for x in ("norm", "ln_q"))
                weight.copy_(0.3 * noise + (1.0 if is_scale else 0.0))
            else:
                weight.copy_(noise / math.sqrt(weight[0].numel()))


def make_hf(made, seed: int = 0) -> torch.nn.Module:
    """A random model of transformers for a config."""
    cls = getattr(transformers, HF_KINDS[made.model_type].model)
    hf = cls._from_config(made, attn_implementation="eager").float().eval()
    randomise(hf, seed)
    return hf


def make_pair(kind: str, *, seed: int = 0, **root) -> Pair:
    """A random model of a kind in both frameworks."""
    made = hf_config(kind, **root)
    hf = make_hf(made, seed)
    model = build_model(our_config(made))
    return Pair(hf, model, to_ours(model, {name: x.detach().numpy() for name, x in hf.named_parameters()}))


def to_ours(model: Model, tensors: dict) -> dict:
    """Tensors under the names in memory, in our tree."""
    config = model.config
    return import_tensors(qwen_rules(config), tensors, model.abstract, qwen_sizes(config), progress=False)


@dataclasses.dataclass(frozen=True)
class Example:
    """One sample: ids with a placeholder for each image or video, the last ones supervised, and these as PNG files."""

    sample: Sample
    media: tuple[Medium, ...]
    sizes: tuple[Size, ...]


def make_example(seed: int, text: int, sizes: list[tuple[int, ...]]) -> Example:
    """Random ids with the media after the first one, a word between each two; the last half of the text supervised.

    Args:
      seed: of ids and pixels.
      text: number of words.
      sizes: height and width of an image, or height, width and frames of a video.
    """
    random = np.random.default_rng(seed)
    words = random.integers(11, VOCAB, text, dtype=np.int32)
    pieces = [words[:1]]
    for number, size in enumerate(sizes):
        placeholder = IMAGE_TOKEN if len(size) == 2 else VIDEO_TOKEN
        pieces += [np.array([placeholder], np.int32), words[1 + number : 2 + number]]
    tokens = np.concatenate([*pieces, words[1 + len(sizes) :]])
    is_medium = (tokens == IMAGE_TOKEN) | (tokens == VIDEO_TOKEN)
    weights = (np.arange(len(tokens)) >= len(tokens) - text // 2).astype(np.float32)
    media = tuple(make_medium(random, *size) for size in sizes)
    return Example(Sample(tokens, weights, is_medium), media, tuple(read_size(medium) for medium in media))


def make_medium(random: np.random.Generator, height: int, width: int, frames: int = 0) -> Medium:
    """Noise as a PNG file; with `frames`, as a video of so many at one a second."""
    files = []
    for _ in range(frames or 1):
        kept = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(kept, "PNG")
        files.append(kept.getvalue())
    return Video(tuple(files), 1.0) if frames else files[0]


def make_batch(config: QwenVLConfig, rows: list[list[Example]], *, tokens: int, media=MEDIA) -> Batch:
    """Our batch: the samples of each row one behind the other, then padding."""
    layout = make_layout(config, media)
    spec = Batch.spec(rows=len(rows), tokens=tokens, media=layout.spec(len(rows), media.units), position_axes=3)
    batch = Batch.empty(spec)
    for number, row in enumerate(rows):
        pieces = [expand(example.sample, example.sizes, layout) for example in row]
        loaded = [layout.load(medium, "test", exact=True) for example in row for medium in example.media]
        fill_row(batch, number, pieces, loaded, layout)
    return batch


def hf_inputs(config: QwenVLConfig, example: Example, media=MEDIA) -> dict[str, torch.Tensor]:
    """One sample for transformers, from its own image processor."""
    piece = expand(example.sample, example.sizes, make_layout(config, media))
    ids = torch.from_numpy(piece.tokens.astype(np.int64))[None]
    supervised = np.zeros(len(piece.tokens), bool)
    supervised[1:] = piece.loss_weights[:-1] > 0
    labels = torch.where(torch.from_numpy(supervised)[None], ids, -100)
    inputs = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    inputs["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    images = [medium for medium in example.media if not isinstance(medium, Video)]
    videos = [medium for medium in example.media if isinstance(medium, Video)]
    if images:
        opened = [Image.open(io.BytesIO(image)) for image in images]
        inputs |= dict(image_processor(config, media)(opened, return_tensors="pt"))
    if videos:
        inputs |= video_inputs(config, media.video, videos) | {"position_ids": position_ids(piece.positions)}
    return inputs


def position_ids(positions: np.ndarray) -> torch.Tensor:
    """Positions of one row, int32[L, 3], for transformers, whose own rule for the text after a video is another."""
    return torch.from_numpy(positions.T[:, None].astype(np.int64))


def image_processor(config: QwenVLConfig, limits: QwenVLMedia | VideoConfig) -> Qwen2VLImageProcessorPil:
    """The image processor of transformers."""
    c = config.vision
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels},
        patch_size=c.patch_size,
        merge_size=config.projector.merge_size,
        temporal_patch_size=2,
        image_mean=list(c.image_mean),
        image_std=list(c.image_std),
    )


def video_inputs(config: QwenVLConfig, limits: VideoConfig, videos: list[Video]) -> dict[str, torch.Tensor]:
    """What transformers' model takes for videos, from its image processor: that of videos needs torchvision.

    A patch of an image is its frame twice. Here the second frame is that of the next image.
    """
    pixels, grids, process = [], [], image_processor(config, limits)
    for video in videos:
        files = video.source
        taken = sample_frames(config.kind, limits, len(files), len(files) / video.fps)
        found = process([Image.open(io.BytesIO(files[number])) for number in taken], return_tensors="pt")
        frames = found["pixel_values"].reshape(len(taken), -1, 3, 2, config.vision.patch_size**2)[:, :, :, 0]
        pixels.append(rearrange(frames, "(T F) P C V -> (T P) (C F V)", F=2))
        grids.append((len(taken) // 2, *found["image_grid_thw"][0, 1:].tolist()))
    return {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids)}
