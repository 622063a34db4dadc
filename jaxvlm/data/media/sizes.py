"""The size of any medium of a record."""

from __future__ import annotations

from jaxvlm.data.media import images, video
from jaxvlm.media import Medium, Size, Video

MEDIA_REASONS = images.IMAGE_REASONS + video.VIDEO_REASONS  # of a `RecordError` about a file


def read_size(medium: Medium, origin: str = "") -> Size:
    """The size of an image or a video as displayed, from the header of its file; decodes little or nothing.

    Raises:
      RecordError: the file is missing, corrupt, truncated or too large.
      UserError: it is a video, and PyAV is not installed.
    """
    if isinstance(medium, Video):
        return video.read_video_size(medium, origin)
    return images.read_size(medium, origin)
