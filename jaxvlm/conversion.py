"""Implements `jaxvlm convert`: import of Hugging Face checkpoints, export to them, comparison."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np

from jaxvlm.config import LoraConfig
from jaxvlm.errors import UserError
from jaxvlm.exported_settings import exported_text
from jaxvlm.families.registry import codec
from jaxvlm.families.sources import PART_CODECS, folder_codec, open_source
from jaxvlm.imported_settings import STAGE
from jaxvlm.inference.compare import logits_of_folder, logits_of_run
from jaxvlm.processes import log
from jaxvlm.restore import Run, open_run
from jaxvlm.runs import RunFolder, example
from jaxvlm.source_model import adapter_names, imported_layout, load_sources, read_sources, wide_enough
from jaxvlm.training.checkpoint import Checkpoints
from jaxvlm.training.state import initial_state, merge_adapters
from jaxvlm.trees import map_paths, paths
from jaxvlm.weights.adapters.writing import write_adapter
from jaxvlm.weights.codec import Codec, Export
from jaxvlm.weights.compare import compare_tensors, without_copies
from jaxvlm.weights.reading import open_tensors
from jaxvlm.weights.rules import export_tensors
from jaxvlm.weights.source import ResizedVocab
from jaxvlm.weights.spelling import Spelling, find_spelling, respelled
from jaxvlm.weights.tensors import CastSource, TensorSource, listed
from jaxvlm.weights.writing import new_folder, parse_size

# Logits of equal models, in float32 by us and by torch, differ by less than this share of the largest (measured: 1e-5).
_LOGITS_DIFFER = 1e-3


def import_run(args: argparse.Namespace) -> dict[str, Any]:
    """Makes a run whose only stage has the sources' weights, each in its own dtype.

    Raises:
      UserError: a source or the adapter cannot be read or does not fit, or the folder of the run is not empty.
    """
    found = read_sources(args.sources, args.template, args.adapter)
    with new_folder(args.to, overwrite=False) as folder:
        made = RunFolder(folder)
        found.tokenizer.save_pretrained(made.tokenizer)
        spellings = [dataclasses.asdict(piece.spelling) for source in found.sources for piece in source.pieces]
        origin = {"from": args.sources, "spellings": spellings, "replaced": found.adapter.replaced}
        made.origin_file.write_text(json.dumps(origin, indent=1) + "\n")

        layout = imported_layout(found.config)
        params = load_sources(found, layout)
        config, more = wide_enough(found.config, params)
        made.save_config(config)
        kept = map_paths(_with_dtype_of(params), layout.state.frozen)
        layout = dataclasses.replace(layout, state=dataclasses.replace(layout.state, frozen=kept))
        state = initial_state(layout, args.seed, params)
        checkpoints = Checkpoints(made.checkpoints(STAGE))
        checkpoints.save(state, {}, 0, wait=True)
        checkpoints.close()
    log(*(f"{part}: {source.spec}" for part, source in found.owners.items()))
    log(*(f"{part}: random weights" for part in found.missing), *found.notes, *more)
    log(f"imported to {args.to}", f"ask it: {example(args.to, config)}")
    parts = {part: source.spec for part, source in found.owners.items()}
    return {"run": str(args.to), "parts": parts, "random": found.missing}


def _with_dtype_of(params: dict) -> Callable[[str, Any], jax.ShapeDtypeStruct]:
    """Function on a path and an abstract leaf: the leaf with the dtype of `params` there, if it has one."""
    given = paths(params)

    def leaf(path: str, x: Any) -> jax.ShapeDtypeStruct:
        dtype = given[path].dtype if path in given else x.dtype
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

    return leaf


def export_run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes a Hugging Face folder of a run, and checks what was written."""
    shard_bytes = parse_size(args.shard_size)
    if args.merge and args.adapter:
        raise UserError("--merge and --adapter exclude each other: merged weights, or adapters for a base model")
    opened = open_run(args.run, stage=args.stage, step=args.step, keep_dtypes=True)
    adapters = dict(opened.model.adapters)
    if adapters and not (args.merge or args.adapter):
        raise UserError(
            f"{args.run} has adapters; pass --merge to fold them into the weights, or --adapter for PEFT's form"
        )
    if args.adapter and not adapters:
        raise UserError(f"{args.run} has no adapters; leave --adapter out")
    if args.adapter and (args.dtype or args.resize_embeddings or args.part):
        raise UserError(
            "--adapter writes adapters and projector as they are; leave out --dtype, --part and --resize-embeddings"
        )
    if args.adapter and (replaced := _replaced(opened.folder)):
        raise UserError(
            f"{listed(replaced)} are not those of the base model, and the form of adapters has no place for them; "
            "pass --merge instead"
        )
    form = _form(opened.config.model.family, args.part)
    with new_folder(args.out, overwrite=args.overwrite) as folder:
        if args.adapter:
            model = opened.config.model
            notes = write_adapter(
                folder,
                opened.params,
                opened.model.abstract,
                adapter_names(model),
                adapters,
                base_model=args.base,
                # Also a frozen one: an earlier stage or an imported adapter may have changed it.
                projector="projector" in model.parts,
            )
            if trained := _trained_before(opened.folder, opened.stage_name):
                notes.append(f"{args.base or 'the base model'} must have the weights that were {listed(trained)}")
            log(*(f"note: {note}" for note in notes))
        else:
            _write_model(folder, form, opened, merge_adapters(opened.params, adapters), args, shard_bytes)
    if args.push_to_hub:
        _push(args.out, args.push_to_hub)
    log(f"exported step {opened.step} of {opened.stage_name} to {args.out}")
    return {"folder": str(args.out), "stage": opened.stage_name, "step": opened.step}


def _form(family: str, part: str | None) -> Codec:
    if part in PART_CODECS:
        return PART_CODECS[part]
    whole = codec(family)
    if part and part not in whole.parts:
        raise UserError(f'--part {part}: family "{family}" has no form for it alone')
    return whole.parts[part] if part else whole


def _write_model(
    folder: Path, form: Codec, opened: Run, params: dict, args: argparse.Namespace, shard_bytes: int
) -> None:
    config = opened.config.model
    tokenizer, image_id, added = form.extend_tokenizer(opened.tokenizer)
    if added:
        log(f"the tokenizer had no {added[0]}; it was added with id {image_id}")
    rows = config.language.vocab_size
    if image_id >= rows:
        needed = -(-(image_id + 1) // 64) * 64
        if not args.resize_embeddings:
            raise UserError(
                f"<image> was added to the tokenizer with id {image_id}, and the embedding has {rows} rows; pass "
                f"--resize-embeddings to add rows up to {needed} (each the mean of all, a multiple of 64)"
            )
        rows = needed
        log(f"the embedding was resized from {config.language.vocab_size} to {rows} rows")
    spelling = _source_spelling(opened.folder, form) or (form.written(config) if form.written else form.hub)
    chosen = {args.part: params[args.part]} if args.part else params
    rules = form.rules(config, spelling)
    tensors: TensorSource = export_tensors(rules, chosen, form.sizes(config))
    if rows != config.language.vocab_size:
        tensors = ResizedVocab(tensors, rules, rows)
        config = dataclasses.replace(config, language=dataclasses.replace(config.language, vocab_size=rows))
    if args.dtype:
        tensors = CastSource(tensors, jnp.dtype(args.dtype))
    dtype = str(tensors.dtype)
    form.save(folder, tensors, shard_bytes)
    if isinstance(tensors, CastSource):
        tensors.check()

    positions = max(stage.data.tokens for stage in opened.config.stage.values())
    data = opened.stage.data
    notes: list[str] = []
    stop_ids: tuple[int, ...] = ()
    if args.part in (None, "language"):
        tokenizer, stop_ids, notes = exported_text(tokenizer, data, opened.config.date, alone=not form.has_processor)
    generation = opened.config.generation
    export = Export(config, tokenizer, image_id, stop_ids, data.media, generation, dtype, positions)
    values, more = form.write(folder, export)
    log(*(f"note: {note}" for note in (*notes, *more)))
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    _check_written(folder, tensors)


def _check_written(folder: Path, wanted: TensorSource) -> None:
    """Opens the folder as a reader would: its config must describe the same model, its files contain every tensor."""
    written = open_tensors(folder)
    problems = [
        f"{name}: {written.spec(name) if name in written else 'absent'}, expected {wanted.spec(name)}"
        for name in wanted
        if name not in written or written.spec(name) != wanted.spec(name)
    ]
    problems += [f"{name} is unexpected" for name in written if name not in wanted]
    if problems:
        raise UserError(f"{folder} was not written correctly: {'; '.join(problems)}")
    open_source(str(folder))


def _origin(folder: Path) -> dict[str, Any]:
    """What `import_run` wrote of a run's sources; empty for a run that was trained."""
    path = RunFolder(folder).origin_file
    return json.loads(path.read_text()) if path.is_file() else {}


def _starts(folder: Path) -> list[Path]:
    """The runs that a run's encoder and decoder come from."""
    init = RunFolder(folder).load_config().init
    starts = {Path(start).resolve() for start in (init.model, init.vision, init.language) if start}
    return [start for start in sorted(starts) if RunFolder(start).has_begun and start != folder.resolve()]


def _replaced(folder: Path) -> list[str]:
    """Paths of weights that an imported adapter replaced, in this run or in the one that it started from."""
    return _origin(folder).get("replaced") or [path for run in _starts(folder) for path in _replaced(run)]


def _trained_before(folder: Path, stage: str) -> list[str]:
    """What earlier stages changed of the encoder and the decoder, which the adapters of `stage` build on."""
    config = RunFolder(folder).load_config()
    adapters = config.stage[stage].parts.adapters()
    found = []
    for start in _starts(folder):
        last = RunFolder(start).load_config().stages[-1]
        found += _trained_before(start, last) + _trained_in(start, last, adapters)
    for name in config.stages[: config.stages.index(stage)]:
        found += _trained_in(folder, name, adapters)
    return found


def _trained_in(folder: Path, stage: str, adapters: Mapping[str, LoraConfig]) -> list[str]:
    parts, where = RunFolder(folder).load_config().stage[stage].parts, f"in stage {stage} of {folder}"
    own = parts.adapters()
    full = [part for part, policy in parts.policies.items() if policy == "full" and part != "projector"]
    merged = [part for part in own if own[part] != adapters.get(part)]
    return [f"trained {where} ({part})" for part in full] + [f"adapted {where} ({part})" for part in merged]


def _source_spelling(folder: Path, form: Codec) -> Spelling | None:
    """The tensor spelling of the one folder a run was imported from, if all versions of transformers load it."""
    found = [Spelling(**spelling) for spelling in _origin(folder).get("spellings", ())]
    return found[0] if len(found) == 1 and form.loads(found[0]) else None


def _push(folder: Path, name: str) -> None:
    try:
        huggingface_hub.create_repo(name, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # of the hub client and of HTTP: a dozen unrelated types
        raise UserError(
            f"{name} did not take the upload ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}); "
            f"{folder} is whole: log in with `hf auth login` and run `hf upload {name} {folder}`"
        ) from error


def verify_pair(args: argparse.Namespace, show: Callable[[str], None]) -> dict[str, Any]:
    """Compares two checkpoints tensor by tensor, and their logits if asked to.

    Args:
      show: called with each line of the comparison: the 20 largest differences, then the totals.

    Raises:
      UserError: they differ.
    """
    forms = [_codec(path) for path in (args.a, args.b)]
    hub = max((form.hub for form in forms), key=lambda spelling: len(spelling.prefixes()))  # of a whole, if either is
    a, b = (_tensors(path, form, hub) for path, form in zip((args.a, args.b), forms, strict=True))
    found = compare_tensors(a, b, (args.a, args.b))
    compared, differing, problems = len(found.differences), found.differing, found.problems
    for name, value in itertools.islice(differing.items(), 20):
        show(f"{value:12.3e}  {name}")
    show(f"{compared} tensors compared, {compared - len(differing)} equal, largest difference {found.largest:g}")
    result: dict[str, Any] = {"compared": compared, "differing": len(differing), "largest": found.largest}
    if args.logits:
        result["logits"] = _verify_logits(args, show, problems)
    if problems:
        raise UserError(f"{args.a} and {args.b} are not the same: {'; '.join(problems[:20])}")
    return result


def _codec(path: Path) -> Codec:
    return codec(RunFolder(path).load_config().model.family) if RunFolder(path).has_begun else folder_codec(path)


def _tensors(path: Path, form: Codec, hub: Spelling) -> TensorSource:
    """A checkpoint's tensors under the hub's names, whatever it calls them."""
    if RunFolder(path).has_begun:
        opened = open_run(path, keep_dtypes=True)
        config, params = opened.config.model, merge_adapters(opened.params, dict(opened.model.adapters))
        exported = export_tensors(form.rules(config, form.hub), params, form.sizes(config))
        return respelled(without_copies(exported, form.known, ()), form.hub, hub)
    tensors = without_copies(open_tensors(path), form.known, form.ignored)
    return respelled(tensors, find_spelling(tensors, form.known), hub)


def _verify_logits(args: argparse.Namespace, show: Callable[[str], None], problems: list[str]) -> float:
    """The largest difference; a problem is added if it is more than rounding."""
    images = [Path(image) for image in args.image]
    a, b = (
        logits_of_run(open_run(path, keep_dtypes=True), images, args.prompt)
        if RunFolder(path).has_begun
        else logits_of_folder(path, images, args.prompt)
        for path in (args.a, args.b)
    )
    if a.shape[0] != b.shape[0]:
        problems.append(
            f"the prompt is {a.shape[0]} tokens in {args.a} and {b.shape[0]} in {args.b}: their chat templates or "
            "tokenizers differ"
        )
        return float("inf")
    columns = min(a.shape[1], b.shape[1])
    difference, largest = float(np.abs(a[:, :columns] - b[:, :columns]).max()), float(np.abs(a).max())
    show(f"logits of {a.shape[0]} tokens: largest difference {difference:.3e}, largest logit {largest:.3g}")
    if not difference <= (limit := _LOGITS_DIFFER * max(1.0, largest)):  # a NaN differs, too
        problems.append(f"logits differ by up to {difference:.3g}, by rounding alone they would by {limit:.1g} at most")
    return difference
