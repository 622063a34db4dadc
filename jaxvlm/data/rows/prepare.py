"""Prepares data once for many runs: decodes and resizes images, and writes ArrayRecord shards with a card.

Training on prepared data equals training on the original data: the ids are the same, and with them the held-out split,
and so are the order and the pixels (bit for bit if images are stored as PNG). Each record keeps its original origin
(file and index).

An interrupted run resumes: progress.json lists the shards that are complete.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxvlm.data.records import Record, RecordError
from jaxvlm.data.rows.ledger import WHOLE, Ledger
from jaxvlm.data.sources.mix import Mix
from jaxvlm.data.sources.prepared import CARD, shard_name, write_card, write_shard
from jaxvlm.data.workers import worker_pool
from jaxvlm.errors import UserError
from jaxvlm.files import replace_text
from jaxvlm.media import MediaLayout
from jaxvlm.progress import progress_bar

PROGRESS = "progress.json"


def prepare(
    mix: Mix,
    known: dict[int, RecordError],
    layout: MediaLayout,
    out: Path,
    *,
    jpeg: int,
    shard_records: int,
    skip: bool,
) -> dict[str, Any]:
    """Writes all records of a mix into a folder.

    Args:
      mix: the records.
      known: records that break a rule, by their number in the mix; they are left out.
      layout: decides how images are stored.
      out: the folder: new, empty, or started with the same records and settings.
      jpeg: JPEG quality of the images, 1 to 95; 0 stores PNG, which keeps every pixel.
      shard_records: number of records per shard; the last shard may have fewer.
      skip: whether a record whose image cannot be decoded is left out and counted, like those of `known`.

    Returns:
      The card.

    Raises:
      UserError: the folder contains something else. Or, without `skip`, images cannot be decoded; the message comes
        after all other shards are written. Once the images are fixed, the same command writes only the missing shards.
    """
    count = max(1, -(-len(mix) // shard_records))
    settings = {
        "records": mix.fingerprint(),
        "shard_records": shard_records,
        "images": layout.settings() | {"jpeg": jpeg},
        "left_out": sorted(known),
    }
    done: dict[str, dict[str, Any]] = _finished_shards(out, settings)
    out.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if shard_name(number, count) not in done]
    jobs = [
        (out / shard_name(n, count), range(n * shard_records, min((n + 1) * shard_records, len(mix)))) for n in missing
    ]
    failed: list[list[str]] = []
    with (
        progress_bar("preparing", count, "shard", initial=count - len(missing)) as bar,
        worker_pool(_set, mix, set(known), layout, jpeg) as pool,
    ):
        for running in concurrent.futures.as_completed([pool.submit(_write, *job) for job in jobs]):
            entry, broken = running.result()
            bar.update()
            if broken and not skip:
                failed.extend(broken)
                continue
            done[entry["name"]] = entry | {"rejected": broken}
            replace_text(out / PROGRESS, json.dumps({"settings": settings, "shards": done}) + "\n")
    if failed:
        named = "\n".join(f"  {message}" for message, _, _ in failed[:10])
        raise UserError(
            f"{len(failed)} images cannot be decoded:\n{named}\nFix them and run this command again, which writes only "
            "the missing shards; or leave them out with --on-bad skip, which counts them in the card's ledger"
        )
    card = _card(mix, known, settings, [done[shard_name(number, count)] for number in range(count)])
    write_card(out, card)
    (out / PROGRESS).unlink()
    return card


def _card(
    mix: Mix, known: dict[int, RecordError], settings: dict[str, Any], entries: list[dict[str, Any]]
) -> dict[str, Any]:
    """Makes the card of complete shards, with the ledger of all records."""
    reasons = [error.reason for error in known.values()]
    reasons += [reason for entry in entries for _, _, reason in entry["rejected"]]
    used = sum(entry["records"] for entry in entries)
    ledger = Ledger.of([("rejected", reason) for reason in reasons] + [("used", WHOLE)] * used)
    return {
        "shards": [{key: value for key, value in entry.items() if key != "rejected"} for entry in entries],
        "settings": settings,
        "sources": [part.name for part in mix.parts],
        "ledger": ledger.to_dict(),
        "rejected": [[error.origin, error.reason, str(error)] for error in known.values()]
        + [[origin, reason, message] for entry in entries for message, origin, reason in entry["rejected"]],
    }


def _finished_shards(out: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The shards that an earlier run finished; raises `UserError` if the folder contains anything else."""
    if not out.exists() or not any(out.iterdir()):
        return {}
    if (out / CARD).exists():
        raise UserError(f"{out} already contains prepared data; choose another --out, or remove it")
    try:
        saved = json.loads((out / PROGRESS).read_text())
        started, shards = saved["settings"], saved["shards"]
    except FileNotFoundError as error:
        raise UserError(f"{out} is not empty and contains no unfinished prepared data; choose another --out") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out / PROGRESS} is damaged ({error}); remove {out} and start again") from error
    if started != settings:
        other = ", ".join(key for key in settings if started.get(key) != settings[key])
        raise UserError(f"{out} was started with other {other}; use the same to resume it, or choose another --out")
    return {n: e for n, e in shards.items() if (out / n).is_file() and (out / n).stat().st_size == e["bytes"]}


_work: tuple[Mix, set[int], MediaLayout, int] | None = None  # per worker process


def _set(mix: Mix, left_out: set[int], layout: MediaLayout, jpeg: int) -> None:
    global _work
    _work = mix, left_out, layout, jpeg


def _write(path: Path, chunk: range) -> tuple[dict[str, Any], list[list[str]]]:
    """Writes a shard. Returns its entry of the card, and (message, origin, reason) of each corrupt record."""
    assert _work is not None
    mix, left_out, layout, jpeg = _work
    broken: list[list[str]] = []

    def records() -> Iterator[Record]:
        for index in chunk:
            if index in left_out:
                continue
            try:
                record = mix[index]
                kept = tuple(layout.store(image, record.origin, jpeg) for image in record.images)
            except RecordError as error:
                broken.append([str(error), error.origin, error.reason])
                continue
            yield dataclasses.replace(record, images=kept)

    return write_shard(path, records()), broken
