"""Convolution worked by hand: plain loops that show what a layer computes, and how far one value sees.

What nets call convolution turns no filter around: each output value is the dot product of the filter and the piece
of the image under it. Everything here is slow and exact, to be read and to check the fast layers against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

# A binary figure of 7×7 pixels, as the worked examples use it.
FIGURE: Final = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ],
    np.float64,
)
IDENTITY: Final = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float64)
BOX_BLUR: Final = np.full((3, 3), 1 / 9)
HORIZONTAL_EDGES: Final = np.array([[-1, -1, -1], [2, 2, 2], [-1, -1, -1]], np.float64)


def pad(image: np.ndarray, width: int) -> np.ndarray:
    """(H, W, …) with `width` zeros on each side: (H + 2·width, W + 2·width, …)."""
    around = [(width, width), (width, width)] + [(0, 0)] * (image.ndim - 2)
    return np.pad(image, around)


def convolve(image: np.ndarray, kernel: np.ndarray, *, keep_size: bool = False) -> np.ndarray:
    """One filter over one image, both (H, W): the dot product at each place, (H − h + 1, W − w + 1).

    With `keep_size` the image is padded with zeros first, so that a filter of odd size gives (H, W).

    >>> convolve(FIGURE, IDENTITY).shape
    (5, 5)
    >>> bool((convolve(FIGURE, IDENTITY, keep_size=True) == FIGURE).all())
    True
    """
    height, width = kernel.shape
    if keep_size:
        if height % 2 == 0 or height != width:
            raise ValueError(f"a {height}×{width} filter cannot keep the size: expected an odd square")
        image = pad(image, height // 2)
    rows, columns = image.shape[0] - height + 1, image.shape[1] - width + 1
    if rows < 1 or columns < 1:
        raise ValueError(f"an image of {image.shape[0]}×{image.shape[1]} is smaller than the {height}×{width} filter")
    output = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            output[i, j] = (image[i : i + height, j : j + width] * kernel).sum()
    return output


def conv_layer(image: np.ndarray, filters: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A convolution layer: k filters of 3×3×d and a bias each, then ReLU.

    image (H, W, d), filters (k, 3, 3, d), bias (k,) -> (H − 2, W − 2, k). Each filter sees every channel; the
    responses are stacked.
    """
    if filters.shape[-1] != image.shape[-1]:
        raise ValueError(f"filters of depth {filters.shape[-1]} do not fit an image of depth {image.shape[-1]}")
    stacked = []
    for kernel, offset in zip(filters, bias, strict=True):
        channels = [convolve(image[:, :, c], kernel[:, :, c]) for c in range(image.shape[-1])]
        stacked.append(relu(np.sum(channels, axis=0) + offset))
    return np.stack(stacked, axis=-1)


def relu(x: np.ndarray) -> np.ndarray:
    """Rectified linear unit: what is negative becomes 0."""
    return np.maximum(x, 0)


def max_pool(image: np.ndarray, size: int = 2) -> np.ndarray:
    """The largest value of each `size`×`size` square; rows and columns left over at the end are left out.

    (H, W, …) -> (H // size, W // size, …)

    >>> max_pool(np.array([[1, 2, 9], [3, 4, 9], [9, 9, 9]])).tolist()
    [[4]]
    """
    rows, columns = image.shape[0] // size, image.shape[1] // size
    squares = image[: rows * size, : columns * size].reshape(rows, size, columns, size, *image.shape[2:])
    pooled: np.ndarray = squares.max(axis=(1, 3))
    return pooled


# --- how far a value sees ----------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """What decides a layer's view, along one axis: a 3×3 convolution is Layer(3), 2×2 pooling Layer(2, 2)."""

    kernel: int
    stride: int = 1
    dilation: int = 1


class View(NamedTuple):
    """Along one axis: a value sees `field` inputs; its neighbour's view begins `jump` inputs further."""

    field: int
    jump: int


def receptive_field(layers: Sequence[Layer]) -> View:
    """What one value after the last layer sees of the input, along one axis. The layers come in order, input first.

    Each layer widens the view by (its kernel's reach) × (how far apart its inputs lie), and its stride spreads them.

    One value after a 3×3 convolution and 2×2 pooling has seen 4×4 = 16 pixels:

    >>> receptive_field([Layer(3), Layer(2, 2)]).field ** 2
    16
    """
    field, jump = 1, 1
    for layer in layers:
        if layer.kernel < 1 or layer.stride < 1 or layer.dilation < 1:
            raise ValueError(f"{layer}: kernel, stride and dilation are at least 1")
        field += (layer.kernel - 1) * layer.dilation * jump
        jump *= layer.stride
    return View(field, jump)
