"""Convolution by hand: the worked examples' exact numbers, and the same from PyTorch and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from models.convolution import (
    BOX_BLUR,
    FIGURE,
    HORIZONTAL_EDGES,
    IDENTITY,
    Layer,
    conv_layer,
    convolve,
    max_pool,
    receptive_field,
    relu,
)


def grid(text: str) -> list[list[float]]:
    return [[float(word) for word in row.split()] for row in text.split("/")]


CENTRE = "0 1 1 1 0 / 1 1 1 1 1 / 1 1 1 0 0 / 1 1 1 1 1 / 0 1 1 1 0"
BLURRED = "3 5 6 5 3 / 5 8 8 6 3 / 6 9 8 7 4 / 5 8 8 6 3 / 3 5 6 5 3"
EDGES = "0 1 3 1 0 / 1 1 1 3 3 / 0 0 -2 -4 -4 / 1 1 1 3 3 / 0 1 3 1 0"
RECTIFIED = "0 1 3 1 0 / 1 1 1 3 3 / 0 0 0 0 0 / 1 1 1 3 3 / 0 1 3 1 0"


def test_the_worked_examples_have_their_exact_numbers() -> None:
    assert convolve(FIGURE, IDENTITY).tolist() == grid(CENTRE)
    assert convolve(FIGURE, IDENTITY, keep_size=True).tolist() == FIGURE.tolist()
    np.testing.assert_allclose(9 * convolve(FIGURE, BOX_BLUR), grid(BLURRED), atol=1e-12)
    edges = convolve(FIGURE, HORIZONTAL_EDGES)
    assert edges.tolist() == grid(EDGES)
    assert relu(edges).tolist() == grid(RECTIFIED)
    pooled = max_pool(relu(edges))
    assert pooled.tolist() == [[1, 3], [1, 3]]
    assert max_pool(pooled).tolist() == [[3]]


def test_one_value_sees_sixteen_pixels_and_pooled_again_the_whole_figure() -> None:
    assert receptive_field([Layer(3), Layer(2, 2)]).field ** 2 == 16
    whole = receptive_field([Layer(3), Layer(2, 2), Layer(2, 2)]).field
    rows, columns = np.argwhere(FIGURE).max(axis=0) - np.argwhere(FIGURE).min(axis=0) + 1
    assert whole == 6 >= max(rows, columns)


@pytest.mark.parametrize(
    "layers",
    [
        [Layer(3)],
        [Layer(3), Layer(2, 2)],
        [Layer(3), Layer(3), Layer(2, 2), Layer(3), Layer(2, 2)],
        [Layer(5, 2), Layer(3, 1, 2), Layer(2, 2)],
        [Layer(3, 1, 1), Layer(3, 1, 2), Layer(3, 1, 4)],
    ],
)
def test_a_receptive_field_is_what_a_gradient_reaches(layers: list[Layer]) -> None:
    x = torch.zeros(1, 1, 64, requires_grad=True)
    y = x
    for layer in layers:
        weight = torch.ones(1, 1, layer.kernel)
        y = torch.nn.functional.conv1d(y, weight, stride=layer.stride, dilation=layer.dilation)
    middle = y.shape[-1] // 2
    reached = []
    for at in (middle, middle + 1):
        (gradient,) = torch.autograd.grad(y[0, 0, at], x, retain_graph=True)
        reached.append(np.flatnonzero(gradient[0, 0].numpy()))
    view = receptive_field(layers)
    assert reached[0].max() - reached[0].min() + 1 == view.field
    assert reached[1].min() - reached[0].min() == view.jump


def test_any_filter_gives_what_pytorch_and_opencv_give() -> None:
    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=(9, 11)), rng.normal(size=(3, 3))
    by_torch = torch.nn.functional.conv2d(torch.tensor(image)[None, None], torch.tensor(kernel)[None, None])[0, 0]
    np.testing.assert_allclose(convolve(image, kernel), by_torch.numpy(), atol=1e-12)
    by_opencv = cv2.filter2D(image, cv2.CV_64F, kernel, borderType=cv2.BORDER_CONSTANT)
    np.testing.assert_allclose(convolve(image, kernel, keep_size=True), by_opencv, atol=1e-12)


def test_a_layer_is_pytorchs_conv2d_with_relu_and_pooling() -> None:
    rng = np.random.default_rng(1)
    image, filters, bias = rng.normal(size=(9, 8, 3)), rng.normal(size=(4, 3, 3, 3)), rng.normal(size=4)
    ours = conv_layer(image, filters, bias)
    assert ours.shape == (7, 6, 4)
    x = torch.tensor(image).permute(2, 0, 1)[None]
    theirs = torch.relu(torch.nn.functional.conv2d(x, torch.tensor(filters).permute(0, 3, 1, 2), torch.tensor(bias)))
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).numpy(), atol=1e-12)
    pooled = torch.nn.functional.max_pool2d(theirs, 2)
    np.testing.assert_allclose(max_pool(ours), pooled[0].permute(1, 2, 0).numpy(), atol=1e-12)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="an image of 2×2 is smaller than the 3×3 filter"):
        convolve(np.zeros((2, 2)), IDENTITY)
    with pytest.raises(ValueError, match="expected an odd square"):
        convolve(FIGURE, np.ones((2, 2)), keep_size=True)
    with pytest.raises(ValueError, match="filters of depth 2 do not fit an image of depth 3"):
        conv_layer(np.zeros((5, 5, 3)), np.zeros((1, 3, 3, 2)), np.zeros(1))
    with pytest.raises(ValueError, match="at least 1"):
        receptive_field([Layer(0)])
