"""Every family learns, exports without a warning, proves itself, and steps as it computes whole sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from export.learner import surprise_of, torch_run
from export.package import write_model, write_tokenizer
from export.sequences import join
from export.tasks import pad
from export.texts import learn_tokenizer
from export.to_onnx import to_onnx
from models.cnn1d import CausalCNN, RunningMean, WindowMean
from models.cnn2d import vision
from models.convolution import Layer, receptive_field
from models.rocket import FadingMean, Rocket
from models.vibration import Vibration
from service.packages import load_package
from service.parity import verify
from tests.export.families import FAMILIES, FLAT, TOKENS, Family

SIZES = (1, 3, 64)
every_family = pytest.mark.parametrize("name", FAMILIES)


def classes(family: Family) -> int:
    return 2 if family.output == "logit" else 4


def whole(net: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    return torch_run(net)(x)


@every_family
def test_eight_sequences_are_learnt_by_heart(name: str) -> None:
    family = FAMILIES[name]
    K, lengths = classes(family), [5, 9, 6, 12, 8, 7, 12, 10]
    net, x, y = family.net(K), family.sequences(lengths), np.arange(8) % K
    batch = join(x, y)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        net.train()
        logits, _ = net(batch.x, net.initial_state(8))
        loss = surprise_of(logits, batch.y, batch.weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    guess = whole(net, batch.x.numpy())[np.arange(8), np.array(lengths) - 1].argmax(-1)
    assert guess.tolist() == y.tolist()


@every_family
def test_sequences_padded_together_equal_each_alone(name: str) -> None:
    family, lengths = FAMILIES[name], [1, 4, 9, 6]
    net, x = family.net(classes(family)), family.sequences(lengths)
    together = whole(net, pad(x))
    for row, sequence in zip(together, x, strict=True):
        assert np.abs(row[: len(sequence)] - whole(net, sequence[None])[0]).max() < 1e-5


@every_family
def test_any_cut_equals_the_whole_sequence(name: str) -> None:
    family = FAMILIES[name]
    net = family.net(classes(family)).eval()
    x = torch.from_numpy(np.stack(family.sequences([23, 23])))
    with torch.no_grad():
        expected, last = net(x, net.initial_state(2))
        for cut in ([1] * 23, [7, 1, 1, 14], [2, 21]):
            state, parts = net.initial_state(2), []
            for block in x.split(cut, 1):
                y, state = net(block, state)
                parts.append(y)
            assert (torch.cat(parts, 1) - expected).abs().max() < 1e-5
            assert all((state[key] - last[key]).abs().max() < 1e-5 for key in last)
            assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in last.items()}


@every_family
def test_no_batch_and_no_length_makes_onnx_runtime_warn(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    family = FAMILIES[name]
    net, x = family.net(classes(family)).eval(), np.stack(family.sequences([3, 3]))
    session = onnxruntime.InferenceSession(to_onnx(net, x, family.output), providers=["CPUExecutionProvider"])
    for B in SIZES:
        states = {key: value.numpy() for key, value in net.initial_state(B).items()}
        for T in SIZES:
            y = session.run(None, {"x": np.resize(x, (B, T, *x.shape[2:])), **states})[0]
            assert y.shape == (B, T, classes(family))
    assert capfd.readouterr() == ("", "")


@every_family
def test_its_package_passes_the_certificate(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    net, x = family.net(classes(family)).eval(), np.stack(family.sequences([20, 20, 20]))
    for parameter in net.parameters():
        parameter.data *= 1.5  # so that the state matters
    manifest, folder = family.manifest(classes(family)), tmp_path / "tiny" / "1"
    if family.kind == "text":
        words = " ".join(f"w{i}" for i in range(TOKENS - 1))
        manifest = write_tokenizer(learn_tokenizer([words], seen=1).to_str(), manifest, folder)
    write_model(net, manifest, x, folder, family.output)
    assert verify(load_package(folder)).passed


# --- the causal CNN ----------------------------------------------------------------------------------------------


def test_a_row_knows_nothing_of_what_follows_and_sees_as_far_back_as_computed() -> None:
    torch.manual_seed(0)
    net = CausalCNN(4, **FLAT, width=8, dilations=(1, 2, 4)).eval()
    seen = receptive_field([Layer(3), *(Layer(3, dilation=d) for d in (1, 1, 2, 2, 4, 4))]).field
    assert seen == 31
    features: list[torch.Tensor] = []
    net.head.register_forward_hook(lambda _, given, __: features.append(given[0][..., :8].detach()))
    x = torch.randn(1, 60, 3)
    other = x.clone()
    other[0, 20] += 10
    with torch.no_grad():
        net(x, net.initial_state(1))
        net(other, net.initial_state(1))
    changed = (features[0] != features[1]).any(-1)[0].nonzero().flatten().tolist()
    assert changed[0] == 20
    assert 20 + seen - 1 >= changed[-1] > 20 + seen - 6


def test_the_running_mean_counts_from_the_beginning_however_it_is_cut() -> None:
    mean, x = RunningMean(2), torch.arange(12.0).reshape(1, 6, 2)
    y, state = mean(x, mean.initial_state(1))
    assert torch.allclose(y[0, :, 0], torch.tensor([0.0, 1, 2, 3, 4, 5]))
    again, _ = mean(x[:, :1], state)
    assert torch.allclose(again[0, 0, 0], torch.tensor(30.0 / 7))


def test_the_window_mean_divides_by_the_steps_there_were_and_forgets_what_lies_further_back() -> None:
    mean, x = WindowMean(1, 3), torch.tensor([6.0, 0, 3, 9, 0]).reshape(1, 5, 1)
    y, _ = mean(x, mean.initial_state(1))
    assert torch.allclose(y.flatten(), torch.tensor([6.0, 3, 3, 4, 4]))


# --- vibration ---------------------------------------------------------------------------------------------------


def heard(rows: np.ndarray, std: float = 1.0) -> np.ndarray:
    """What the dense layer of a vibration net is given for rows (T, 96): (T, 48)."""
    net = Vibration(nn.Identity(), 96, std=std).eval()
    given: list[torch.Tensor] = []
    net.dense.register_forward_hook(lambda _, x, __: given.append(x[0]))
    net.over.initial_state = lambda batch: {}
    net.over.forward = lambda x, state: (x, state)
    net(torch.from_numpy(rows.astype(np.float32))[None], {})
    return given[0][0].numpy()


def test_white_noise_of_the_training_datas_spread_has_power_1_at_each_frequency() -> None:
    power = np.exp(heard(np.random.default_rng(0).normal(0, 0.3, (4000, 96)), std=0.3))
    assert np.abs(power.mean(0)[1:] - 1).max() < 0.1
    assert 0.8 < power.mean(0)[0] < 0.9, "the row's mean, taken away, had a share in the lowest frequency"


def test_a_tone_is_heard_at_its_frequency_and_a_sensors_offset_not_at_all() -> None:
    tone = np.sin(2 * np.pi * 7 * np.arange(96) / 96 + 0.3)[None]
    assert heard(tone)[0].argmax() == 6, "the first frequency is one wave a row"
    assert np.allclose(heard(tone), heard(tone + 0.5), atol=1e-3)


def test_jitter_is_for_training_alone_and_moves_a_sequence_as_a_whole() -> None:
    torch.manual_seed(0)
    net = Vibration(CausalCNN(4, mean=[0.0] * 8, std=[1.0] * 8, width=8), 32, std=1.0, features=8, jitter=0.5)
    given: list[torch.Tensor] = []
    net.norm.register_forward_hook(lambda _, x, __: given.append(x[0]))
    x = torch.randn(2, 5, 32)
    for mode in (False, False, True):
        net.train(mode)(x, net.initial_state(2))
    assert torch.equal(given[0], given[1])
    moved = given[2] - given[0]  # (B, bins, T)
    assert moved.abs().min() > 0
    assert (moved - moved[:, :, :1]).abs().max() < 1e-5


# --- text --------------------------------------------------------------------------------------------------------


def test_to_a_text_net_whose_reader_is_silent_the_order_of_words_shows_in_their_pairs_alone() -> None:
    net = FAMILIES["text"].net().eval()
    for parameter in net.memory.parameters():
        torch.nn.init.zeros_(parameter)
    one, other = np.array([[1, 2, 3, 9, 9]]), np.array([[2, 1, 3, 9, 9]])
    assert np.abs(whole(net, one)[:, -1] - whole(net, other)[:, -1]).max() > 1e-4
    torch.nn.init.zeros_(net.pairs.weight)
    assert np.abs(whole(net, one)[:, -1] - whole(net, other)[:, -1]).max() < 1e-6


# --- patterns and votes ------------------------------------------------------------------------------------------


def test_a_fading_mean_forgets_half_in_so_many_steps_however_it_is_cut() -> None:
    fading, x = FadingMean(1, [1.0]), torch.tensor([8.0, 0, 0, 7]).reshape(1, 4, 1)
    whole, last = fading(x, fading.initial_state(1), torch.zeros(1, 1))
    assert whole.flatten().tolist() == pytest.approx([8, 8 / 3, 8 / 7, (8 + 7 * 8) / 15], rel=1e-5)
    mean, parts = fading.initial_state(1), []
    for t in range(4):
        y, mean = fading(x[:, t : t + 1], mean, torch.full((1, 1), float(t)))
        parts.append(y)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    assert torch.allclose(mean, last, atol=1e-5)


def test_a_sensors_length_stays_when_it_is_turned() -> None:
    net = Rocket(4, mean=[0.0] * 6, std=[1.0] * 6, width=8, spatial=True)
    x, (turn, _) = torch.randn(1, 5, 6), torch.linalg.qr(torch.randn(3, 3))
    turned = (x.reshape(1, 5, 2, 3) @ turn).reshape(1, 5, 6)
    assert torch.allclose(net._channels(x)[..., 6:], net._channels(turned)[..., 6:], atol=1e-4)
    with pytest.raises(ValueError, match="4 columns: expected x, y and z"):
        Rocket(4, mean=[0.0] * 4, std=[1.0] * 4, spatial=True)


def test_patterns_do_not_answer_to_a_level() -> None:
    """Two thirds of the taps are −1, one third 2: what never changes is no pattern."""
    for conv in Rocket(4, **FLAT, width=16).patterns:
        assert conv.weight.sum(-1).abs().max() < 1e-5
        assert (conv.weight.abs().sum((1, 2)) > 0).all()


def test_members_learn_apart_and_answer_by_the_mean_of_their_probabilities() -> None:
    net = FAMILIES["rockets"].net()
    x = torch.from_numpy(np.stack(FAMILIES["rockets"].sequences([9, 9, 9])))
    assert net.train()(x, net.initial_state(3))[0].shape == (6, 9, 4)
    together = whole(net, x.numpy())
    apart = [whole(member, x.numpy()) for member in net.members]  # type: ignore[union-attr]
    assert np.abs(together - np.mean(apart, 0)).max() < 1e-6
    assert np.abs(apart[0] - apart[1]).max() > 1e-3


# --- the lecture's convolution layer -----------------------------------------------------------------------------


def test_a_valid_convolution_gives_h_minus_2_w_minus_2_k() -> None:
    layers, values = vision((28, 28, 1), ((5,),), keep_size=False)
    assert layers[0](torch.zeros(1, 1, 28, 28)).shape == (1, 5, 26, 26)
    assert layers(torch.zeros(1, 1, 28, 28)).shape == (1, 5, 13, 13)
    assert values == 5 * 13 * 13


def test_frames_too_small_for_the_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="8×8 are too small for 3 blocks"):
        vision((8, 8, 1), ((4,), (4,), (4,)), keep_size=False)
