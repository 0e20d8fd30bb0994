"""Bytes to frames and tokens, in one way for training, parity and serving: the same bytes give the same everywhere.

What is decided here, and so holds for every model:

- The structure is walked first; an image above the limit, or whose decoding would cost more than its size explains, is
  never unpacked.
- An image of which pixels are missing is refused, although decoders would pad it with grey; one that lacks only its
  end mark is whole.
- EXIF orientation is applied: a frame stands as a viewer would show it.
- Alpha is dropped, not composited: colours are taken as stored. 16 bits a channel become 8 by dropping the low ones.
- CMYK becomes RGB by OpenCV's plain formula; colour profiles and gamma are ignored. Of an animated PNG the picture is
  taken that viewers show which know no animations, of an animated WebP the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import cv2
import numpy as np

from service.contracts import FrameInput, TextInput, check_text_size
from service.errors import BadImage, Malformed, TooLarge, WrongShape
from service.images import ImageInfo, check
from service.jpegs import decode_jpeg
from service.pngs import prepared

_INTERPOLATION: Final = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}
_SCALES: Final = (8, 4, 2)

cv2.setNumThreads(1)  # callers bring their own threads; OpenCV's pool only adds hand-offs to images this small
cv2.utils.logging.setLogLevel(0)  # silent: a bad image is an answer to its sender, not a line on our stderr


def decode_frame(data: bytes, spec: FrameInput, *, max_pixels: int) -> np.ndarray:
    """An encoded image as the model takes it: (H, W, C) uint8, C-contiguous. Releases the GIL while it unpacks.

    Raises UnsupportedMedia (not JPEG, PNG, WebP), TooLarge (above `max_pixels`), BadImage (a part is missing, damaged).
    """
    return unpack(data, spec, check(data, max_pixels))


def unpack(
    data: bytes, spec: FrameInput, info: ImageInfo, remark: Callable[[str], None] = lambda said: None
) -> np.ndarray:
    """What `decode_frame` does with an image that was checked: `info` is what was found. `remark` is told what is
    unusual about a picture that is taken."""
    gray = spec.colour == "gray"
    if info.format == "jpeg":
        return fit_frame(decode_jpeg(data, info, gray, _scale(info, spec), remark), spec)
    if info.format == "png":
        data = prepared(data, info)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise BadImage(f"damaged {info.format.upper()} image: {error.err}") from None
    if image is None:
        raise BadImage(f"damaged {info.format.upper()} image: it cannot be decoded")
    return fit_frame(image if gray else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)), spec)


def fit_frame(image: np.ndarray, spec: FrameInput) -> np.ndarray:
    """Pixels (h, w) or (h, w, C) uint8, in the model's colours, to (H, W, C): stretched, letterboxed or cropped."""
    height, width = image.shape[:2]
    if spec.fit == "crop":
        image = _crop(image, spec.width / spec.height)
    elif spec.fit == "letterbox":
        scale = min(spec.width / width, spec.height / height)
        image = _letterbox(_resize(image, max(1, round(width * scale)), max(1, round(height * scale)), spec), spec)
    image = _resize(image, spec.width, spec.height, spec)
    return np.ascontiguousarray(image.reshape(spec.height, spec.width, spec.channels))


# --- text --------------------------------------------------------------------------------------------------------


class Encoding(Protocol):
    @property
    def ids(self) -> Sequence[int]: ...


class Tokenizer(Protocol):
    """What is needed of `tokenizers.Tokenizer`: words to ids, each word by itself."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Encoding: ...


def decode_text(data: bytes, tokenizer: Tokenizer, spec: TextInput) -> np.ndarray:
    """UTF-8 as token ids: (T,) int64, T from 1 to `spec.max_tokens`. Unknown words are the tokenizer's unknown token.

    A text cut at whitespace gives the tokens of the whole (packages.py refuses a tokenizer that does otherwise).
    Raises Malformed (not UTF-8), WrongShape (not a word in it), TooLarge (more tokens than the model takes at once).
    """
    check_text_size(len(data), spec)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"text is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from None
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not ids:
        raise WrongShape("text without a word: expected at least one")
    if len(ids) > spec.max_tokens:
        raise TooLarge(f"text of {len(ids)} tokens: the model takes {spec.max_tokens}; cut it into several entries")
    return np.array(ids, np.int64)


# --- frames: how -------------------------------------------------------------------------------------------------


def _scale(info: ImageInfo, spec: FrameInput) -> int:
    """1, 2, 4 or 8: how much smaller a JPEG is unpacked and still has every pixel that the model sees."""
    if not spec.reduced_decoding:
        return 1
    short, wanted = min(info.width, info.height), max(spec.width, spec.height)  # whatever the orientation
    return next((scale for scale in _SCALES if short >= scale * wanted), 1)


def _resize(image: np.ndarray, width: int, height: int, spec: FrameInput) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=_INTERPOLATION[spec.interpolation]))


def _crop(image: np.ndarray, aspect: float) -> np.ndarray:
    """The largest middle part whose width / height is `aspect`."""
    height, width = image.shape[:2]
    wide, high = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    top, left = (height - high) // 2, (width - wide) // 2
    return image[top : top + high, left : left + wide]


def _letterbox(image: np.ndarray, spec: FrameInput) -> np.ndarray:
    """Black around it, up to (H, W)."""
    height, width = image.shape[:2]
    canvas = np.zeros((spec.height, spec.width, *image.shape[2:]), np.uint8)
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas
