"""Images and videos of a record together: their order, their placeholders, and the id that follows from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from jaxvlm.data.records import IMAGE, VIDEO, Turn, placeholder_of, placeholders
from jaxvlm.data.sources.content import Content
from jaxvlm.data.sources.image_refs import ImageRule, part_image
from jaxvlm.data.sources.values import Problems
from jaxvlm.data.sources.video_refs import part_video, resolve_video, unread_of_part
from jaxvlm.media import Medium, Video

# "type" of a part of a message -> the placeholder that it stands for.
PARTS = {"image": IMAGE, "image_url": IMAGE, "input_image": IMAGE, "video": VIDEO, "video_url": VIDEO}


def read_part(part: dict[str, Any], name: str, place: str, content: Content, problems: Problems) -> None:
    """Reads the image or the video of a part of a message; without one, it stands for the next of the record's key."""
    before = len(problems)
    if PARTS[name] == VIDEO:
        video = part_video(part, place, problems)
        content.videos += [] if video is None else [video]
        content.unread += unread_of_part(part)
        lacks = video is None and len(problems) == before
    else:
        image = part_image(part)
        content.images += [] if image is None else [image]
        lacks = image is None
    if lacks and name not in ("image", "video"):
        problems.append(("wrong_type", f'{place} is of "type" "{name}" and has none'))


def with_medium_in_front(turns: list[Turn], media: Sequence[Medium]) -> list[Turn]:
    """The turns; if they have one medium and no placeholder, with its placeholder before the first question."""
    users = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if len(media) != 1 or not users or any(IMAGE in turns[i].text or VIDEO in turns[i].text for i in users):
        return turns
    first = dataclasses.replace(turns[users[0]], text=f"{placeholder_of(media[0])}\n{turns[users[0]].text}")
    return [*turns[: users[0]], first, *turns[users[0] + 1 :]]


def in_order(turns: Iterable[Turn], images: Sequence[str | bytes], videos: Sequence[Video]) -> list[Medium]:
    """Images and videos in the order of their placeholders; those without a placeholder come last."""
    if not videos:
        return list(images)
    waiting: dict[str, list[Medium]] = {IMAGE: list(images), VIDEO: list(videos)}
    found = placeholders(turns, videos=True)
    media = [waiting[placeholder].pop(0) for placeholder in found if waiting[placeholder]]
    return media + waiting[IMAGE] + waiting[VIDEO]


def resolve(medium: Medium, rule: ImageRule, problems: Problems) -> Medium:
    """The medium with its paths in the image folder, or with bytes for texts that contain them."""
    if isinstance(medium, Video):
        return resolve_video(medium, rule, problems)
    return rule.resolve(medium, problems) if isinstance(medium, str) else medium


def content_id(turns: list[Turn], rejected: str, media: Sequence[Medium]) -> str:
    """The id of a record without one: independent of its folder and of other records."""
    content = json.dumps([[[turn.role, turn.text] for turn in turns], rejected, [_name(medium) for medium in media]])
    return "content:" + hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _name(medium: Medium) -> Any:
    """A path as written, or the hash of bytes; of a video both of them in a list."""
    if isinstance(medium, Video):
        files = medium.source if isinstance(medium.source, tuple) else (medium.source,)
        return [VIDEO, medium.fps, *map(_name, files)]
    return medium if isinstance(medium, str) else hashlib.blake2b(medium).hexdigest()
