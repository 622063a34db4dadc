"""Our train step against the same LLaVA in transformers and torch, on this machine's CPU.

  python -m tests.benchmarks.step_cpu
  python -m tests.benchmarks.step_cpu --size small --rounds 10 --json

Ours is what `jaxvlm.train` runs: `compile_train_step` on a batch of NumPy. Theirs is `LlavaForConditionalGeneration`
at its best here: its default attention (sdpa, causal without a mask), no cache, and the faster of torch's fused and
foreach AdamW. Both have the same random weights, batch and update: float32, vision frozen,
projector and decoder trained, gradient clipped to norm 1, AdamW with decay at a constant rate. Both use all CPUs. The
first two losses must agree to 1e-4, or the program fails.

Two batches, each with one image a sample and 40 % of the text supervised. "full": a row is one sample that fills it,
so that packing plays no part. "mixed": samples of many lengths, as data is; we pack them into rows, transformers pads
them to the longest. What else differs: we compute logits of supervised positions only and leave out the last block of
CLIP, whose output LLaVA does not use; transformers computes both. "GFLOP a step needs" counts each side's own work, of
"full" only. Tokens a second are those of samples, not of padding.

A step of theirs and a step of ours take turns; "ratio" is the median over the rounds of (their seconds / our seconds in
the same round), above 1 where we are faster. Run it on an idle machine: torch's OpenMP threads wait for each other, so
that others' work hurts theirs more than ours. Peak memory is that of a process of its own which builds the model and
takes three steps, less what its imports take (Linux only); some 0.4 GB of ours is XLA's compiler at every size. The
"pieces" are parts of our step, each compiled alone: they need not sum to the step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from jaxvlm.batch import Batch
from jaxvlm.config import Config, MeshConfig, ModelConfig
from jaxvlm.data.rows.packing import Piece, fill_row, plan_rows
from jaxvlm.data.sample import Sample
from jaxvlm.families.build import build_model
from jaxvlm.families.llava.layout import ImageSlots
from jaxvlm.families.registry import resolve
from jaxvlm.models import variants
from jaxvlm.objectives.cross_entropy import cross_entropy
from jaxvlm.sharding import Rules, make_mesh, to_devices
from jaxvlm.training.state import initial_state, merge, state_layout
from jaxvlm.training.step import compile_train_step
from jaxvlm.tuning import LOSS_POSITIONS
from tests.layouts import empty_batch, expand

# torch and transformers are imported where they are used: the process that measures our memory has neither.

SUPERVISED = 0.4  # share of the text
IMAGE_TOKEN, FIRST_WORD = 7, 8  # the placeholder (as in tests/parity/pairs.py), and the lowest id of text
MATMUL = 2048  # rows and columns of the product that stands for the machine's peak


@dataclasses.dataclass(frozen=True)
class Size:
    """Recipe keys of a model, and the shape of its batch."""

    vision: dict[str, Any]
    language: dict[str, Any]
    rows: int  # of "full"
    tokens: int
    samples: int  # of "mixed"


def _sizes(**sizes: int) -> dict[str, int]:
    return sizes


_TINY_VISION = _sizes(image_size=21, patch_size=7, embed_dim=36, mlp_dim=44, num_layers=3, num_heads=3)
_TINY_LANGUAGE = _sizes(
    vocab_size=101, embed_dim=48, mlp_dim=56, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=10
)
_SMALL_VISION = _sizes(image_size=224, patch_size=32, embed_dim=256, mlp_dim=1024, num_layers=6, num_heads=4)
_SMALL_LANGUAGE = _sizes(
    vocab_size=32000, embed_dim=256, mlp_dim=688, num_layers=6, num_heads=4, num_kv_heads=4, head_dim=64
)
SIZES = {
    "tiny": Size(_TINY_VISION, _TINY_LANGUAGE, rows=2, tokens=40, samples=5),  # of the smoke test
    "small": Size(_SMALL_VISION, _SMALL_LANGUAGE, rows=4, tokens=512, samples=12),
    "smollm2_135m": Size(
        variants.vision("clip_b32"), variants.language("smollm2_135m"), rows=4, tokens=512, samples=12
    ),
}


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the benchmark; returns what `--json` prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=(*SIZES, "both"), default="both", metavar="small|smollm2_135m|both")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as a last line of JSON, too")
    parser.add_argument("--batch", choices=("full", "mixed"), help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("ours", "torch"), help=argparse.SUPPRESS)  # the process of `peak_bytes`
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    if args.only:
        print(measure_memory(args.only, SIZES[args.size], args.batch))
        return []
    results = []
    for name in ("small", "smollm2_135m") if args.size == "both" else (args.size,):
        for kind in ("full", "mixed"):
            results.append(run_size(name, kind, args.rounds))
            print(report(results[-1]), flush=True)
    if args.json:
        print(json.dumps(results))
    return results


def make_config(size: Size) -> Config:
    """The recipe: everything that both sides must agree on."""
    c = base.get_config()
    c.model.vision.update(size.vision)
    c.model.language.update(size.language)
    c.model.compute_dtype, c.model.remat = "float32", "dots"
    stage = base.stage()
    stage.parts.vision, stage.frozen_dtype = "frozen", "float32"
    stage.optimizer.update({"learning_rate": 1e-4, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.1})
    stage.data.tokens = size.tokens
    c.stages, c.stage.only = ("only",), stage
    return resolve(c.to_dict())


def make_samples(config: ModelConfig, size: Size, kind: str) -> list[Sample]:
    """Samples of random ids, the image behind the first, whose last 40 % are supervised.

    In "mixed" the lengths are as skewed as those of instruction data: few tokens in most, a row full in some.
    """
    random = np.random.default_rng(0)
    room = size.tokens - config.vision.features_per_image
    if kind == "full":
        lengths = np.full(size.rows, room)
    else:
        lengths = np.clip(np.exp(random.normal(np.log(room / 4), 0.8, size.samples)).astype(int), 8, room)
    samples = []
    for length in lengths:
        tokens = random.integers(FIRST_WORD, config.language.vocab_size, length + 1, dtype=np.int32)
        tokens[1] = IMAGE_TOKEN
        weights = (np.arange(length + 1) >= length + 1 - round(SUPERVISED * length)).astype(np.float32)
        samples.append(Sample(tokens, weights, np.arange(length + 1) == 1))
    return samples


def make_pixels(config: ModelConfig, count: int) -> np.ndarray:
    """uint8[count, Y, X, 3]."""
    shape = (count, config.vision.image_size, config.vision.image_size, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def pack(config: ModelConfig, size: Size, samples: list[Sample]) -> Batch:
    """Our batch: as the data pipeline makes it."""
    layout = ImageSlots.of(config.vision, "pad")
    pieces, pixels = [expand(sample, layout) for sample in samples], make_pixels(config, len(samples))
    lengths, ones = np.array([len(piece.tokens) for piece in pieces]), np.ones(len(pieces), np.int32)
    slots = max(1, round(size.tokens / lengths.mean()))
    rows = plan_rows(lengths, ones, np.arange(len(pieces)), tokens=size.tokens, budget=slots, pack=True)
    batch = empty_batch(layout, rows=len(rows), tokens=size.tokens, images=slots)
    for row, members in enumerate(rows):
        fill_row(batch, row, [pieces[i] for i in members], [pixels[i] for i in members], layout)
    return batch


def pad(config: ModelConfig, samples: list[Sample]) -> dict[str, np.ndarray]:
    """Their batch: a sample a row, padded on the right; labels stand at their own token."""
    return pad_pieces([expand(sample, ImageSlots.of(config.vision, "pad")) for sample in samples])


def pad_pieces(pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
    """The same for expanded samples."""
    B, T = len(pieces), max(len(piece.tokens) for piece in pieces)
    inputs = {"input_ids": np.zeros((B, T), np.int64), "labels": np.full((B, T), -100, np.int64)}
    mask = np.zeros((B, T), np.int64)
    for row, piece in enumerate(pieces):
        n = len(piece.tokens)
        inputs["input_ids"][row, :n], mask[row, :n] = piece.tokens, 1
        inputs["labels"][row, 1:n] = np.where(piece.loss_weights > 0, piece.targets, -100)[:-1]
    if not mask.all():  # without padding its attention is faster without a mask
        inputs["attention_mask"] = mask
    return inputs


class Ours:
    """A state and the compiled step that takes it on."""

    name = "jaxvlm"

    def __init__(self, size: Size, kind: str, params: dict | None = None):
        config = make_config(size)
        stage, self.batch = config.stage["only"], pack(config.model, size, make_samples(config.model, size, kind))
        mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
        self.layout = state_layout(build_model(config.model), stage, 1, mesh, Rules())
        self.state = initial_state(self.layout, config.seed, params)
        self.compiled = compile_train_step(self.layout, stage)

    def step(self) -> float:
        """One update; returns its loss."""
        with jax.set_mesh(self.layout.mesh):
            batch = to_devices(self.batch, self.layout.mesh, self.layout.rules)
            self.state, info = jax.block_until_ready(self.compiled(self.state, batch))
        return float(info["loss"])


class Theirs:
    """The same for a LlavaForConditionalGeneration."""

    name = "transformers"

    def __init__(self, size: Size, kind: str, hf: Any):
        import torch

        from tests.parity import tiny_llava

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        config = make_config(size)
        samples = make_samples(config.model, size, kind)
        inputs = pad(config.model, samples)
        inputs["pixel_values"] = tiny_llava.normalise(config.model, make_pixels(config.model, len(samples)))
        self.inputs = {name: torch.from_numpy(array) for name, array in inputs.items()}
        self.hf = hf.train()
        self.hf.model.vision_tower.requires_grad_(False)
        self.trained = [weight for weight in self.hf.parameters() if weight.requires_grad]
        self.settings = config.stage["only"].optimizer
        self.adamw_seconds = {kind: self._optimizer_seconds(kind) for kind in ("fused", "foreach")}
        faster = min(self.adamw_seconds, key=self.adamw_seconds.__getitem__)
        self.optimizer = self._make_optimizer(faster, self.settings.learning_rate)

    def _make_optimizer(self, kind: str, learning_rate: float) -> Any:
        import torch

        s = self.settings
        groups = [
            {"params": [w for w in self.trained if w.ndim > 1], "weight_decay": s.weight_decay},
            {"params": [w for w in self.trained if w.ndim == 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(s.b1, s.b2), eps=s.epsilon, **{kind: True})

    def _optimizer_seconds(self, kind: str) -> float:
        """Of an update at rate 0, which changes no weight."""
        import torch

        optimizer = self._make_optimizer(kind, 0.0)
        for weight in self.trained:
            weight.grad = torch.ones_like(weight)
        result = median_seconds(optimizer.step, 3)
        optimizer.zero_grad(set_to_none=True)
        return result

    def step(self) -> float:
        """One update; returns its loss."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        loss = self.hf(**self.inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.settings.clip_norm)
        self.optimizer.step()
        return loss.item()


def run_size(name: str, kind: str, rounds: int) -> dict[str, Any]:
    """Measures everything of one size and kind of batch."""
    import torch

    from tests.parity import pairs

    size, load = SIZES[name], os.getloadavg()[0]
    peaks = {side: peak_bytes(side, name, kind) for side in ("ours", "torch")}
    config = make_config(size).model
    pair = pairs.make_pair(config, attention="sdpa")
    sides = {"torch": Theirs(size, kind, pair.hf), "ours": Ours(size, kind, pair.params)}
    del pair
    losses = {side: [sides[side].step(), sides[side].step()] for side in sides}  # the warm-up: ours compiles
    # The first says that model and batch are the same, the second that the update is.
    np.testing.assert_allclose(losses["ours"], losses["torch"], rtol=1e-4, err_msg="not the same step")
    timed: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            time.sleep(0.2)  # until the other's threads sleep, too
            timed[side].append(seconds(sides[side].step))

    medians = {side: statistics.median(timed[side]) for side in sides}
    ratios = [theirs_s / ours_s for theirs_s, ours_s in zip(timed["torch"], timed["ours"], strict=True)]
    a = jax.random.normal(jax.random.key(0), (MATMUL, MATMUL))
    b = torch.randn(MATMUL, MATMUL)
    matmul = jax.jit(jnp.matmul)
    product_seconds = {
        "torch": min(seconds(lambda: torch.matmul(b, b)) for _ in range(7)),
        "ours": min(seconds(lambda: matmul(a, a).block_until_ready()) for _ in range(7)),
    }
    peak_flops = {side: 2 * MATMUL**3 / product_seconds[side] for side in sides}
    batch, theirs = sides["ours"].batch, sides.pop("torch")
    adamw_seconds, padded = theirs.adamw_seconds, list(theirs.inputs["input_ids"].shape)
    del theirs
    tokens = int((batch.segments > 0).sum())
    positions = {"ours": int(batch.loss_weights.sum()), "torch": batch.tokens.size}
    blocks = {"ours": config.vision.num_layers + 1 + config.vision.feature_layer, "torch": config.vision.num_layers}
    flops = {
        side: model_flops(config, size, head_positions=positions[side], vision_blocks=blocks[side])
        for side in positions
    }
    return {
        "size": name,
        "batch": kind,
        "tokens": tokens,
        "packed": list(batch.tokens.shape),
        "padded": padded,
        "supervised": positions["ours"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(sides["ours"].layout.model.abstract)),
        "rounds": rounds,
        "cpus": len(os.sched_getaffinity(0)),
        "load_at_start": load,
        "adamw_seconds": adamw_seconds,
        "step_seconds": medians,
        "tokens_per_second": {side: tokens / medians[side] for side in medians},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "loss": {side: losses[side][0] for side in losses},
        "step_flops": flops,
        "matmul_flops_per_second": peak_flops,
        "share_of_peak": {side: flops[side] / medians[side] / peak_flops[side] for side in flops},
        "peak_bytes": peaks,
        "piece_seconds": time_pieces(sides["ours"], min(rounds, 5)),
    }


def model_flops(config: ModelConfig, size: Size, *, head_positions: int, vision_blocks: int) -> float:
    """FLOPs that a step needs in its matrix products, two for a multiply-add; what a program does beyond is not in it.

    A weight that a token meets costs 2 FLOPs forward and, if trained, 4 backward: its own gradient and its input's.
    """
    v, t = config.vision, config.language
    images, positions, P = size.rows, size.rows * size.tokens, v.features_per_image
    # Multiply-adds of a token and block: q, k, v, out and the three of the MLP; scores and values over the (T + 1) / 2
    # keys that a query sees on average.
    weights = t.embed_dim * (2 * t.num_heads + 2 * t.num_kv_heads) * t.head_dim + 3 * t.embed_dim * t.mlp_dim
    attention = 2 * t.num_heads * t.head_dim * (size.tokens + 1) / 2
    decoder = 6 * positions * t.num_layers * (weights + attention)
    head = 6 * head_positions * t.vocab_size * t.embed_dim
    # Forward only. A block's token (P patches and the class) meets q, k, v, out, the two of the MLP, and P + 1 keys.
    block = (P + 1) * (4 * v.embed_dim**2 + 2 * v.embed_dim * v.mlp_dim + 2 * (P + 1) * v.embed_dim)
    vision = 2 * images * (P * 3 * v.patch_size**2 * v.embed_dim + vision_blocks * block)
    # mlp2x_gelu: the first layer's input is frozen and needs no gradient.
    projector = images * P * (4 * v.embed_dim * t.embed_dim + 6 * t.embed_dim**2)
    return decoder + head + vision + projector


def time_pieces(ours: Ours, repeats: int) -> dict[str, float]:
    """Median seconds of parts of our step, each compiled alone. Uses up the state."""
    layout, state, batch = ours.layout, ours.state, jax.tree.map(jnp.asarray, ours.batch)
    params, model = merge(state.trained, state.frozen), layout.model
    B, T = batch.tokens.shape
    decoder_params = {name: params["language"][name] for name in ("blocks", "norm")}
    head = params["language"].get("head", params["language"]["embed"])["w"]
    x_BTD = jax.random.normal(jax.random.key(0), (B, T, head.shape[1]))

    def vision(params: dict) -> jax.Array:
        return model.bind(params).vision(batch.media.pixels[:, 0])

    def decoder(trained: dict, x: jax.Array, params: dict) -> jax.Array:
        params = params | {"language": params["language"] | trained}
        return model.bind(params).language(x, batch.positions, batch.segments)

    def decoder_loss(trained: dict, x: jax.Array, params: dict) -> jax.Array:
        return jnp.vdot(decoder(trained, x, params), x)  # any cotangent will do

    def head_loss(x: jax.Array, head: jax.Array) -> jax.Array:
        chunk = max(1, min(T, LOSS_POSITIONS // B))  # as `by_device` has it
        return cross_entropy(x, head, batch.targets, batch.loss_weights, chunk)[0]

    def update(trained: dict, optimizer: Any, gradients: dict) -> tuple[dict, Any]:
        updates, optimizer = layout.optimizer.update(gradients, optimizer, trained)
        return optax.apply_updates(trained, updates), optimizer

    def timed(function: Callable[..., Any], *args: Any) -> float:
        compiled = jax.jit(function)
        return median_seconds(lambda: jax.block_until_ready(compiled(*args)), repeats)

    with jax.set_mesh(layout.mesh):
        result = {
            "vision forward": timed(vision, params),
            "decoder forward": timed(decoder, decoder_params, x_BTD, params),
            "decoder forward and backward": timed(
                jax.grad(decoder_loss, argnums=(0, 1)), decoder_params, x_BTD, params
            ),
            "head and loss, forward and backward": timed(jax.grad(head_loss, argnums=(0, 1)), x_BTD, head),
        }
        gradients = jax.tree.map(jnp.copy, state.trained)
        compiled, carry = jax.jit(update, donate_argnums=(0, 1)), (state.trained, state.optimizer)

        def update_once() -> None:
            nonlocal carry
            carry = jax.block_until_ready(compiled(*carry, gradients))

        result["optimizer update"] = median_seconds(update_once, repeats)
    return result


def seconds(function: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Of `repeats` calls, after one that is not counted."""
    function()
    return statistics.median(seconds(function) for _ in range(repeats))


def peak_bytes(side: str, size: str, kind: str) -> int:
    """What `measure_memory` says in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.step_cpu", "--only", side, "--size", size, "--batch", kind]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def measure_memory(side: str, size: Size, kind: str) -> int:
    """Bytes by which building a model and three steps exceed what the imports left."""

    def resident(field: str) -> int:
        # Not getrusage's ru_maxrss: that begins with the peak of the process which started this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

    if side == "ours":
        before, made = resident("VmRSS"), Ours(size, kind)
    else:
        import transformers

        from tests.parity import pairs

        model = transformers.LlavaForConditionalGeneration  # looked up here: transformers imports it on first use
        before = resident("VmRSS")
        made = Theirs(size, kind, model(pairs.hf_config(make_config(size).model)).float())
    for _ in range(3):
        made.step()
    return resident("VmHWM") - before


def report(r: dict[str, Any]) -> str:
    """The tables of one size."""

    def both(name: str, values: dict[str, float], unit: float = 1.0, digits: int = 1) -> tuple[str, str, str]:
        return name, f"{values['ours'] / unit:,.{digits}f}", f"{values['torch'] / unit:,.{digits}f}"

    ratio, step = r["ratio"], r["step_seconds"]["ours"]
    shares = [
        both("GFLOP a step needs", r["step_flops"], 1e9),
        both(f"matmul {MATMUL}^3, GFLOP/s", r["matmul_flops_per_second"], 1e9),
        both("share of that, %", r["share_of_peak"], 1e-2),
    ]
    shares = shares if r["batch"] == "full" else []
    compared = [
        ("", Ours.name, Theirs.name),
        both("step, ms", r["step_seconds"], 1e-3),
        both("tokens a second", r["tokens_per_second"], digits=0),
        both("loss of the first step", r["loss"], digits=5),
        *shares,
        both("peak memory, MiB", r["peak_bytes"], 2**20, 0),
    ]
    pieces = [("pieces", "ms", "% of the step")]
    pieces += [(name, f"{t * 1e3:,.1f}", f"{t / step * 100:.1f}") for name, t in r["piece_seconds"].items()]
    counted = sum(t for name, t in r["piece_seconds"].items() if name != "decoder forward")  # it is in the next one
    pieces.append(("the rest", f"{(step - counted) * 1e3:,.1f}", f"{(1 - counted / step) * 100:.1f}"))
    adamw, adamw_seconds = min(r["adamw_seconds"].items(), key=lambda item: item[1])
    shapes = [" x ".join(map(str, r[shape])) for shape in ("packed", "padded")]
    title = "\n".join(
        [
            f"{r['size']}, {r['batch']} batch: {r['parameters']:,} parameters; {r['tokens']:,} tokens, "
            f"{r['supervised']:,} supervised, ours in {shapes[0]}, theirs in {shapes[1]} positions",
            f"{r['cpus']} CPUs, load {r['load_at_start']:.1f} at the start; torch's AdamW: {adamw}, "
            f"{adamw_seconds * 1e3:,.1f} ms without clipping",
        ]
    )
    verdict = (
        f"ratio {ratio['median']:.2f} (their time / ours; {ratio['min']:.2f} to {ratio['max']:.2f} "
        f"in {r['rounds']} paired rounds)"
    )
    lines = [f"{name:<38}{left:>14}{right:>14}" for name, left, right in compared + [("", "", "")] + pieces]
    return "\n".join(["", title, "", *lines, "", verdict])


if __name__ == "__main__":
    main(sys.argv[1:])
