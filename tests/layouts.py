"""Image slots for tests, and short forms of what takes a layout."""

import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.data.media.images import read_size
from jaxvlm.data.records import RecordError
from jaxvlm.data.rows import packing
from jaxvlm.data.rows.pipeline import build_pipeline
from jaxvlm.families.llava.layout import ImageSlots
from jaxvlm.media import MediaError, Size

GREY = (122, 116, 104)
ANY = Size(1, 1)  # a slot takes an image of any size


def slots(size, features, aspect="pad"):
    return ImageSlots(size, features, GREY, aspect)


def expand(sample, layout):
    return packing.expand(sample, [ANY] * int(np.count_nonzero(sample.is_image)), layout)


def extents(sample, layout):
    return [layout.measure(ANY)] * int(np.count_nonzero(sample.is_image))


def empty_batch(layout, *, rows=1, tokens, images):
    return Batch.empty(Batch.spec(rows=rows, tokens=tokens, media=layout.spec(rows, images)))


def make_pipeline(config, tokenizer, *, vision, **options):
    """`build_pipeline` with the slots of an encoder."""
    return build_pipeline(config, tokenizer, layout=ImageSlots.of(vision, config.media.aspect), **options)


def check_header(source, size, aspect, origin=""):
    """What the index pass and the layout find out about an image without decoding it."""
    try:
        slots(size, 1, aspect).measure(read_size(source, origin))
    except MediaError as error:
        raise RecordError(f"{origin}: {error.problem}", origin, error.reason) from error
