"""What the scheduler's thread does with the devices: prompts enter slots, slots take steps.

Axis letters:
  B slots   N new tokens   F features of an image
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import numpy as np

from jaxvlm.batch import Array, Batch, map_arrays
from jaxvlm.inference.engine import Engine
from jaxvlm.inference.programs import Likelihoods, Requests, Rows, bucket
from jaxvlm.inference.sampling import GREEDY
from jaxvlm.inference.slots import Choice, SlotPrograms
from jaxvlm.media import MediaError, MediaLayout, Size
from jaxvlm.progress import progress_bar
from jaxvlm.serving.answers import Answer
from jaxvlm.serving.caches import ByteLru, PrefixCache
from jaxvlm.serving.limits import Sizes
from jaxvlm.serving.prompts import Loaded, Prompt
from jaxvlm.serving.requests import MAX_TOP_LOGPROBS
from jaxvlm.serving.statistics import Stats, count_compilations

_SMALLEST_UNITS = 64  # of an image, where images have different numbers
_MORE_TOKENS = 512  # of a prompt whose beginning is cached, read at once
_SMALLEST_SEEN = 128  # slots of the cache that a step reads; fewer are not noticeably faster


@dataclasses.dataclass(frozen=True, eq=False)
class Unread:
    """New tokens on their way from the device."""

    answers: tuple[tuple[int, Answer], ...]  # row of the arrays, and whose it is
    tokens: Array  # int32[B, N]
    likelihoods: Likelihoods | None

    def deliver(self) -> list[Answer]:
        """Waits for the tokens and gives them to their answers; returns those that got some."""
        tokens_BN = np.asarray(self.tokens)
        likelihoods = jax.tree.map(np.asarray, self.likelihoods)
        given = []
        for row, answer in self.answers:
            tokens = [token for token in tokens_BN[row].tolist() if token >= 0]
            if tokens and not answer.reason:
                answer.take(tokens, None if likelihoods is None else jax.tree.map(lambda x, r=row: x[r], likelihoods))
                given.append(answer)
        return given


class Device:
    """The state of all slots, the programs that change it, and what requests leave for others; for one thread."""

    def __init__(self, engine: Engine, sizes: Sizes):
        """Compiles nothing."""
        self._layout: MediaLayout = engine.layout
        self._programs = engine.programs
        self._slots = SlotPrograms(engine.programs, sizes.slots, sizes.tokens)
        self._sizes = sizes
        self._units = media_sizes(engine.layout, sizes.tokens)
        self._images: ByteLru[tuple[Any, np.ndarray]] = ByteLru(sizes.image_cache_bytes)
        self._images_lock = threading.Lock()
        self._prefixes = PrefixCache(sizes.prefix_cache_bytes)
        self._top = min(MAX_TOP_LOGPROBS, engine.model.config.language.vocab_size)
        self._hits = {"image_hits": 0, "image_misses": 0, "prefix_hits": 0, "prefix_misses": 0}
        self._watched = self._compiled = 0
        self._rows: Rows
        self._logits_1V: Array = None  # of any prompt, for `compile`
        self._none: Any = None  # features of a prompt without images

    def features_of(self, hash: bytes) -> tuple[Any, np.ndarray] | None:
        """What is cached of an image: its features and their order; may be called on any thread."""
        with self._images_lock:
            return self._images.get(hash)

    @property
    def is_alive(self) -> bool:
        """Whether the slots are intact; an exception within a program may have destroyed them."""
        return not any(leaf.is_deleted() for leaf in jax.tree.leaves(self._rows))

    def watch(self) -> None:
        """From now on counts what the calling thread compiles."""
        self._watched = threading.get_ident()
        self._compiled = count_compilations(self._watched)

    def add_to(self, stats: Stats) -> None:
        """Writes the counters of the caches and of compilations."""
        for name, count in self._hits.items():
            setattr(stats, name, count)
        stats.image_cache_bytes, stats.prefix_cache_bytes = self._images.used, self._prefixes.used
        stats.compilations = count_compilations(self._watched) - self._compiled

    # Entering.

    def enter(self, answer: Answer, loaded: Sequence[Loaded]) -> Generator[int, None, Unread]:
        """Reads a prompt into the answer's slot, in pieces; yields the tokens of each piece but the last.

        Returns:
          the first token.
        """
        prompt, slot = answer.ticket.prompt, answer.slot
        key = prompt.key(tuple(image.hash for image in loaded))
        beginning, start = self._prefixes.find(key)
        if self._row_size(prompt.length - start) == self._row_size(prompt.length):
            start = 0  # reading the rest would take as long as reading all
        self._hits["prefix_hits" if start else "prefix_misses"] += 1
        answer.cached_tokens = start
        features = yield from self._features(prompt, loaded, start)
        if start:
            assert beginning is not None
            self._rows = self._slots.load(self._rows, beginning, slot, start)
            logits_1V = yield from self._fill_more(prompt, features, slot, start)
        else:
            batch = prompt.batch(0, prompt.length, self._row_size(prompt.length))
            self._rows, logits_1V = self._slots.fill(self._rows, batch, features, slot)
        if self._prefixes.limit and self._prefixes.wants(key):
            self._prefixes.put(key, self._slots.save(self._rows, slot, self._row_size(prompt.length)))
        return self._begin(answer, logits_1V)

    def _fill_more(self, prompt: Prompt, features: Any, slot: int, start: int) -> Generator[int, None, Array]:
        while True:
            end = min(start + _MORE_TOKENS, prompt.length)
            batch = prompt.batch(start, end, self._row_size(end - start))
            self._rows, logits_1V = self._slots.fill_more(self._rows, batch, features, slot)
            if end == prompt.length:
                return logits_1V
            yield end - start
            start = end

    def _features(self, prompt: Prompt, loaded: Sequence[Loaded], start: int) -> Generator[int, None, Any]:
        """The features of the prompt's images; those of images that end before `start` are left zero."""
        features, at = self._none, 0
        done = int(prompt.piece.image_index[:start].max(initial=-1)) + 1
        for image, count in zip(loaded, prompt.counts, strict=True):
            at += count
            if at <= done:
                continue
            found = image.features or self.features_of(image.hash)
            self._hits["image_hits" if found else "image_misses"] += 1
            of_image, order_F = found or self._encode(image)
            if features is self._none:
                features = self._slots.no_features(of_image)
            features = self._slots.put(features, of_image, order_F, at - count)
            if not found:
                yield count
        return features

    def _encode(self, image: Loaded) -> tuple[Any, np.ndarray]:
        """Features of an image, and their order."""
        array = image.array
        assert array is not None
        units = next(size for size in self._units if size >= self._layout.units_of(array))
        media = self._media(units)
        order = self._layout.write(media, 0, 0, array)
        of_image = self._programs.encode(media)
        leaves = jax.tree.leaves(of_image)
        order_F = np.zeros(leaves[0].shape[-2], np.int32)
        order_F[: len(order)] = order
        with self._images_lock:
            self._images.put(image.hash, (of_image, order_F), sum(leaf.nbytes for leaf in leaves))
        return of_image, order_F

    def _media(self, units: int) -> Any:
        return map_arrays(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._layout.spec(1, units))

    def _row_size(self, length: int) -> int:
        return min(bucket(length), self._sizes.tokens)

    def _begin(self, answer: Answer, logits_1V: Array) -> Unread:
        prompt, sampling = answer.ticket.prompt, answer.ticket.request.sampling
        request = Requests.same(np.zeros(1, np.int32), prompt.max_new_tokens, sampling)
        choice = self._choice([answer])
        self._rows, token, likelihoods = self._slots.begin(
            self._rows, logits_1V, answer.slot, prompt.next_position, request, choice
        )
        answer.left -= 1
        return Unread(((0, answer),), token, likelihoods)

    # Steps.

    def step(self, answers: Sequence[Answer]) -> Unread | None:
        """Starts the next tokens of all answers; None if none is left."""
        going = [answer for answer in answers if answer.left]
        if not going:
            return None
        steps = min(self._sizes.steps, max(answer.left for answer in going))
        keep_B = np.zeros(self._sizes.slots, bool)
        keep_B[[answer.slot for answer in going]] = True
        longest = 0
        for answer in going:
            answer.left -= min(steps, answer.left)
            prompt = answer.ticket.prompt
            longest = max(longest, prompt.length + prompt.max_new_tokens - answer.left)
        choice = self._choice(going)
        seen = next(size for size in self._seen(choice) if size >= min(longest, self._sizes.tokens))
        self._rows, tokens_BN, likelihoods = self._slots.step(self._rows, keep_B, steps, choice, seen)
        return Unread(tuple((answer.slot, answer) for answer in going), tokens_BN, likelihoods)

    def _choice(self, answers: Sequence[Answer]) -> Choice:
        if any(answer.wants_likelihoods for answer in answers):
            return Choice(greedy=False, top=self._top)
        return Choice(greedy=not any(answer.ticket.request.sampling.temperature for answer in answers))

    def _choices(self) -> list[Choice]:
        return [Choice(greedy=True), Choice(greedy=False), Choice(greedy=False, top=self._top)]

    def _seen(self, choice: Choice) -> list[int]:
        """Sizes of the cache that a step is compiled for, ascending."""
        sizes = [] if choice.top else [size for size in _doubled(_SMALLEST_SEEN) if size < self._sizes.tokens]
        return [*sizes, self._sizes.tokens]

    # Compilation.

    def compile(self, *, progress: bool) -> None:
        """Runs every program once with each shape that it can meet."""
        self._rows = self._slots.empty()
        calls = [*self._media_calls(), *self._row_calls(), *self._step_calls()]
        with progress_bar("compile", len(calls), "program", show=progress) as bar:
            for call in calls:
                call()
                bar.update()
        jax.block_until_ready(self._rows)

    def _media_calls(self) -> list[Callable[[], None]]:
        def encode(units: int) -> None:
            of_image = self._programs.encode(self._media(units))
            order_F = np.zeros(jax.tree.leaves(of_image)[0].shape[-2], np.int32)
            self._none = self._slots.put(self._slots.no_features(of_image), of_image, order_F, 0)

        def clear() -> None:
            self._none = self._slots.no_features(self._none)

        return [*(functools.partial(encode, units) for units in self._units), clear]

    def _row_calls(self) -> list[Callable[[], None]]:
        sizes = sorted({self._row_size(length) for length in range(1, self._sizes.tokens + 1)})
        begins = [functools.partial(self._try_begin, choice) for choice in self._choices()]
        return [*(functools.partial(self._try_row, size) for size in sizes), *begins]

    def _try_row(self, size: int) -> None:
        axes = self._layout.position_axes
        ids = np.zeros((1, size), np.int32)
        positions = ids if axes == 1 else np.zeros((1, size, axes), np.int32)
        batch = Batch(ids, None, None, positions, ids + 1, None, ids - 1)
        self._rows, self._logits_1V = self._slots.fill(self._rows, batch, self._none, 0)
        if self._prefixes.limit:
            self._rows = self._slots.load(self._rows, self._slots.save(self._rows, 0, size), 0, 1)
            if size <= self._row_size(_MORE_TOKENS):
                self._rows, self._logits_1V = self._slots.fill_more(self._rows, batch, self._none, 0)

    def _try_begin(self, choice: Choice) -> None:
        request = Requests.same(np.zeros(1, np.int32), 1, GREEDY)
        self._rows, *_ = self._slots.begin(self._rows, self._logits_1V, 0, 0, request, choice)

    def _step_calls(self) -> list[Callable[[], None]]:
        def step(choice: Choice, seen: int) -> None:
            self._rows, *_ = self._slots.step(self._rows, np.zeros(self._sizes.slots, bool), 1, choice, seen)

        return [functools.partial(step, choice, seen) for choice in self._choices() for seen in self._seen(choice)]


def _doubled(smallest: int) -> list[int]:
    return [smallest << n for n in range(20)]


def media_sizes(layout: MediaLayout, tokens: int) -> list[int]:
    """The numbers of media units to which one image or video is padded, ascending; none if the layout takes no images.

    Args:
      tokens: no image has more positions.
    """
    try:
        extents = [layout.measure(Size(side, side)) for side in (64, 2048)]
    except MediaError:
        return []
    if extents[0].units == extents[1].units:  # all images have as many
        return [extents[0].units]
    units = tokens * layout.least_units // layout.least_positions
    return sorted({bucket(n, _SMALLEST_UNITS) for n in range(1, units + 1)})
