"""Their side: the same LLaVA in transformers and torch, as fast as it goes without other libraries.

Frozen weights are bfloat16; trained ones are float32 under autocast, as ours. Attention is scaled_dot_product_attention
(FlashAttention where a batch has no padding), AdamW is the fused one, adapters are PEFT's.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import torch
import transformers

from jaxvlm.config import Config
from tests.benchmarks.accelerator import measurements
from tests.benchmarks.accelerator.measurements import Batches, Measurement, Setting
from tests.benchmarks.accelerator.trace import Event, shares
from tests.benchmarks.step_cpu import pad_pieces
from tests.parity.pairs import hf_config
from tests.parity.tiny_llava import normalise

NAME = "transformers"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller setting may work."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe() -> dict[str, Any]:
    """The device and versions."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if torch.cuda.is_available():
        versions["cuda"], versions["cudnn"] = str(torch.version.cuda), str(torch.backends.cudnn.version())
    return {"kind": name, "versions": versions}


def _make(config: Config, dtype: torch.dtype) -> transformers.LlavaForConditionalGeneration:
    made = hf_config(config.model, config.model.language.architecture)
    made._attn_implementation = made.text_config._attn_implementation = "sdpa"
    with torch.device(device()), _default_dtype(dtype):
        return transformers.LlavaForConditionalGeneration(made)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _Side:
    """What both kinds of measurement share."""

    def peak_bytes(self) -> float | None:
        """The most memory that torch had in use since the process began."""
        return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None

    def trace(self, kind: str) -> dict[str, float]:
        """Shares of the time by class of operation, of one run."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            self.run(kind)
        kinds = {torch.autograd.DeviceType.CUDA} if torch.cuda.is_available() else {torch.autograd.DeviceType.CPU}
        events = [
            Event(str(event.device_index), event.name, event.time_range.start * 1e-6, event.time_range.end * 1e-6)
            for event in profile.events()
            if event.device_type in kinds
        ]
        return shares(events)

    def run(self, kind: str) -> dict[str, float]:
        raise NotImplementedError


class Training(_Side):
    """A model, its optimizer, and the batches on the device."""

    def __init__(self, measurement: Measurement, setting: Setting, tiny: bool, compile: bool = False):
        config = measurements.make_config(measurement, tiny)
        (stage,) = config.stage.values()
        self.exact = config.model.compute_dtype == "float32"
        model = _make(config, torch.float32 if self.exact else torch.bfloat16)
        if setting.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.requires_grad_(False)
        model.train()
        if stage.parts.language == "lora":
            model = _with_adapters(model, stage.parts.lora.language)
        self.parameters = sum(weight.numel() for weight in model.parameters())
        for name, weight in model.named_parameters():
            if "multi_modal_projector" in name or (
                stage.parts.language == "full" and "vision" not in name and "projector" not in name
            ):
                weight.data = weight.data.float()
                weight.requires_grad_(True)
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.model = torch.compile(model) if compile else model
        s = stage.optimizer
        self.clip_norm = s.clip_norm
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=s.learning_rate, betas=(s.b1, s.b2), eps=s.epsilon, weight_decay=0.0, fused=True
        )
        self.made = {
            kind: measurements.make_batches(measurement, config, kind, setting.rows) for kind in measurement.kinds
        }
        self.batches = {kind: _batches(config, made, setting.rows) for kind, made in self.made.items()}

    def describe(self) -> dict[str, Any]:
        """What the parent needs for its table."""
        return {
            "parameters": self.parameters,
            "trained": sum(weight.numel() for weight in self.trained),
            "devices": 1,
            "kinds": {
                kind: {
                    "tokens": made.tokens,
                    "samples": len(made.pieces),
                    "steps": len(self.batches[kind]),
                    "positions": sum(batch["input_ids"].numel() for batch in self.batches[kind]),
                }
                for kind, made in self.made.items()
            },
        }

    def run(self, kind: str) -> dict[str, float]:
        """One update with each batch."""
        _wait()
        start = time.perf_counter()
        for batch in self.batches[kind]:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device().type, torch.bfloat16, enabled=not self.exact):
                loss = self.model(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
            self.optimizer.step()
        _wait()
        return {"seconds": time.perf_counter() - start, "loss": loss.item()}


def _with_adapters(model: Any, lora: Any) -> Any:
    import peft

    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    )
    return peft.get_peft_model(model, settings)


def _batches(config: Config, made: Batches, rows: int) -> list[dict[str, torch.Tensor]]:
    """The samples of our batches, `rows` at once, padded on the right to the longest; labels at their own token."""
    pixels = measurements.make_pixels(config.model, 1)
    batches = []
    for start in range(0, len(made.pieces), rows):
        pieces, images = made.pieces[start : start + rows], sum(made.images[start : start + rows])
        inputs = pad_pieces(pieces)
        if images:
            inputs["pixel_values"] = np.repeat(normalise(config.model, pixels), images, axis=0)
        batches.append({name: torch.from_numpy(array).to(device()) for name, array in inputs.items()})
    return batches


class Decoding(_Side):
    """`generate` of a model in the compute dtype."""

    def __init__(self, measurement: Measurement, setting: Setting | None, tiny: bool):
        self.config, self.tiny = measurements.make_config(measurement, tiny), tiny
        self.dtype = torch.float32 if self.config.model.compute_dtype == "float32" else torch.bfloat16
        self.model = _make(self.config, self.dtype).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0

    def describe(self) -> dict[str, Any]:
        """What the parent needs for its table."""
        return {"parameters": sum(weight.numel() for weight in self.model.parameters()), "devices": 1}

    def run(self, kind: str) -> dict[str, float]:
        """Answers of a batch of `kind` prompts, and what reading the prompts takes of it."""
        rows, count = int(kind), measurements.new_tokens(self.tiny)
        prompts = measurements.make_prompts(self.config, rows, self.tiny)
        pixels = normalise(self.config.model, prompts.media.pixels[:, 0])
        inputs = {
            "input_ids": torch.from_numpy(prompts.tokens.astype(np.int64)).to(device()),
            "attention_mask": torch.ones(prompts.tokens.shape, dtype=torch.int64, device=device()),
            "pixel_values": torch.from_numpy(pixels).to(device(), self.dtype),
        }
        read = self._seconds(inputs, 1)
        return {"seconds": self._seconds(inputs, count), "prompt_seconds": read, "tokens": rows * count}

    def _seconds(self, inputs: dict[str, torch.Tensor], count: int) -> float:
        _wait()
        start = time.perf_counter()
        with torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=count, do_sample=False, use_cache=True)
        _wait()
        assert ids.shape[1] == inputs["input_ids"].shape[1] + count
        return time.perf_counter() - start


def prepare() -> None:
    """Before the first use of torch."""
    transformers.logging.set_verbosity_error()
