"""Text packages: proven like the others, their tokenizer checked, and streamed in any cut as the whole."""

from __future__ import annotations

import shutil
from functools import cache
from itertools import chain, pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from export import package
from export.texts import learn_tokenizer, sst2, tokens, trec
from models.text import TextRecurrent
from service.contracts import Manifest, RollingSettings
from service.engine import OnnxEngine
from service.errors import PackageRefused
from service.packages import Package, load_package, load_packages
from service.parity import verify
from tests.worlds import MemoryWorld, World, answered, working

TEXTS = [
    "a stirring , funny and finally moving film",
    "it is not funny , it is not moving , it is not a film",
    "so bad that it is good , and so good that it hurts a bit",
    "a film",
]
LABELS = ["negative", "positive"]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """One sigmoid neuron over an LSTM, with random weights large enough that every word matters."""
    folder = tmp_path_factory.mktemp("texts") / "tiny-text" / "1"
    tokenizer = learn_tokenizer(TEXTS, seen=1)
    torch.manual_seed(3)
    net = TextRecurrent("lstm", tokenizer.get_vocab_size(), 2, embedding=8, width=8).eval()
    for parameter in net.parameters():
        parameter.data *= 3
    manifest = Manifest(
        format=1, name="tiny-text", version=1, kind="text", labels=LABELS, sha256="",
        rolling=RollingSettings(half_life_s=0.0, enter=0.55, exit=0.45),
    )  # fmt: skip
    manifest = package.write_tokenizer(tokenizer.to_str(), manifest, folder)
    golden = np.stack([tokens(tokenizer, text)[:8] for text in TEXTS[:3]])
    package.write_model(net, manifest, golden, folder, "logit")
    return load_package(folder)


def test_a_text_package_passes_its_certificate(packaged: Package) -> None:
    assert verify(packaged).passed
    assert {state.name for state in packaged.manifest.states} == {"h", "c", "before", "mean", "count"}


def test_one_neuron_says_one_minus_p_and_p(packaged: Package) -> None:
    engine = OnnxEngine(packaged)
    y, _ = engine.run(np.ones((1, 4), np.int64), engine.initial(1))
    assert y.shape == (1, 4, 2)
    assert np.allclose(y.sum(-1), 1)


def copied(packaged: Package, folder: Path) -> Path:
    return Path(shutil.copytree(packaged.folder, folder / "1"))


def replace_tokenizer(folder: Path, tokenizer: str) -> None:
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)
    manifest = package.write_tokenizer(tokenizer, manifest, folder)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))


@pytest.mark.parametrize(("damage", "check"), [("gone", "files"), ("other", "sha256"), ("broken", "tokenizer")])
def test_a_damaged_tokenizer_is_refused_by_name(packaged: Package, tmp_path: Path, damage: str, check: str) -> None:
    folder = copied(packaged, tmp_path)
    if damage == "gone":
        (folder / "tokenizer.json").unlink()
    elif damage == "other":
        (folder / "tokenizer.json").write_text(learn_tokenizer(["other words"], seen=1).to_str())
    else:
        replace_tokenizer(folder, '{"model": "none"}')
    with pytest.raises(PackageRefused, match=r"tokenizer\.json") as caught:
        load_package(folder)
    assert caught.value.check == check


def blind() -> Tokenizer:
    """Words it does not know give nothing."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def joined() -> Tokenizer:
    """Byte-level pairs see the space before a word: a word at the beginning is another token."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "Ġ": 2, "Ġb": 3}, [("Ġ", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel()
    return tokenizer


@pytest.mark.parametrize(("made", "said"), [(blind, "unknown word"), (joined, "words by themselves")])
def test_a_tokenizer_that_cannot_be_streamed_is_refused(packaged: Package, tmp_path: Path, made, said: str) -> None:
    folder = copied(packaged, tmp_path)
    replace_tokenizer(folder, made().to_str())
    with pytest.raises(PackageRefused, match=said):
        load_package(folder)


# --- as people write ---------------------------------------------------------------------------------------------

SAME = [  # as people and phones write, as the training texts have it
    ("don't miss it", "do n't miss it"),
    ("don’t miss it", "do n't miss it"),
    ("don`t don´t donʼt don＇t DON’T", "do n't do n't do n't do n't do n't"),
    ("you can't look away", "you ca n't look away"),
    ("it won’t, shouldn’t've and couldn't", "it wo n't , should n't 've and could n't"),
    ("it's what we’re after, i'll say", "it 's what we 're after , i 'll say"),
    ("i cannot wait", "i can not wait"),
    ("“funny”", "`` funny ''"),
    ('a "funny film," and ("moving")', "a `` funny film , '' and -lrb- `` moving '' -rrb-"),
    ("moving—and funny – it is", "moving -- and funny -- it is"),
    ("moving… so funny!!", "moving ... so funny ! !"),
    ("his/her film (so far).", "his \\/ her film -lrb- so far -rrb- ."),
    ("a well\u2011made film", "a well-made film"),
    ("fun\u00adny\u200b film\ufeff", "funny film"),
    ("fiance\u0301", "fiancé"),
]


@cache
def shipped(name: str) -> Tokenizer:
    tokenizer = load_packages()[0][name].tokenizer
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize(("written", "learnt"), SAME)
def test_what_people_write_is_what_was_learnt(written: str, learnt: str) -> None:
    assert tokens(shipped("sentiment-lstm"), written).tolist() == tokens(shipped("sentiment-lstm"), learnt).tolist()


def test_a_word_is_cut_where_the_training_texts_cut_it_and_nowhere_else() -> None:
    glued, cut = learn_tokenizer(["you can 't", "it isn 't"], seen=1), learn_tokenizer(["you ca n't ?"], seen=1)
    assert glued.encode("You can’t").tokens == ["you", "can", "'", "t"]
    assert cut.encode("You can’t?").tokens == ["you", "ca", "n", "'", "t", "?"]
    assert learn_tokenizer(["i cannot"], seen=1).encode("cannot").tokens == ["cannot"]
    plain = learn_tokenizer(['a "film" ( so far ) -'], seen=1)
    assert plain.encode("“film” (so) –").tokens == ['"', "film", '"', "(", "so", ")", "-"]


TYPED = (
    "don't can’t \"a film\" “so bad” (it is) \" ' '' `` — ... .... n't ?! cannot t n 't -lrb- a/b \\/ * ´ … !! -- n’t!"
)
PIECES = st.sampled_from([*TYPED.split(), "\u200b", "e\u0301"])


@given(st.lists(st.lists(PIECES, min_size=1, max_size=3).map("".join), min_size=1, max_size=8))
def test_a_text_cut_at_whitespace_gives_the_tokens_of_the_whole(words: list[str]) -> None:
    for name in ("sentiment-lstm", "question-lstm"):
        one_by_one = [token for word in words for token in tokens(shipped(name), word).tolist()]
        assert tokens(shipped(name), " ".join(words)).tolist() == one_by_one
        straight = [word.replace("’", "'") for word in words]
        assert tokens(shipped(name), " ".join(straight)).tolist() == one_by_one


@pytest.mark.parametrize(("name", "read"), [("sentiment-lstm", sst2), ("question-lstm", trec)])
def test_the_shipped_tokenizer_is_learnt_from_the_training_texts(name: str, read, data_folder: Path) -> None:
    """And gives what they are cut into as they stand, but for rows of signs that stand there once."""
    data = read(data_folder)
    assert shipped(name).to_str() == data.tokenizer
    plain = Tokenizer.from_str(data.tokenizer)
    plain.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    pairs = zip(data.train.names, data.train.x, strict=True)
    assert sum(tokens(plain, text).tolist() != x.tolist() for text, x in pairs) < 5


# --- streamed ----------------------------------------------------------------------------------------------------


def post(world: World, stream: str, text: str | bytes, **more: bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return world.append(stream, {"stream": stream.encode(), "kind": b"text", "data": data, **more})


def test_any_cut_where_words_end_equals_the_whole_text(packaged: Package) -> None:
    """Among each other's streams, in batches: the last prediction of each cut is that of the whole, events too."""
    rng = np.random.default_rng(0)
    world, expected, posts = MemoryWorld(4), {}, {}
    for number, text in enumerate(TEXTS * 8):
        words, stream = text.split(), f"cut-{number}"
        cuts = sorted({0, len(words), *rng.integers(1, max(2, len(words)), rng.integers(0, 4)).tolist()})
        pieces = [" ".join(words[a:b]) for a, b in pairwise(cuts)]
        post(world, f"whole-{number}", text, time=b"10")
        for piece in pieces:
            post(world, stream, piece, time=b"10")
        posts |= {f"whole-{number}": 1, stream: len(pieces)}
        expected[stream] = f"whole-{number}"
    assert max(posts.values()) > 2
    with working(world.new_log(), OnnxEngine(packaged), tokenizers={"tiny-text": packaged.tokenizer}):
        bodies = answered(world, posts)
    for stream, whole in expected.items():
        last, alone = bodies[stream][-1], bodies[whole][0]
        assert (last["step"], last["label"]) == (alone["step"], alone["label"])
        assert np.allclose(last["probabilities"], alone["probabilities"], atol=1e-5)
        assert np.allclose(last["rolling"]["probabilities"], alone["rolling"]["probabilities"], atol=1e-5)
        events = [[(e["type"], e["label"], e["step"]) for e in body["events"]] for body in bodies[stream]]
        assert list(chain.from_iterable(events)) == [(e["type"], e["label"], e["step"]) for e in alone["events"]]
    assert sum(len(body["events"]) for each in bodies.values() for body in each) > 20


def test_a_stream_equals_torch_on_the_whole_sequence(packaged: Package) -> None:
    golden = np.load(packaged.folder / "golden.npz")
    world = MemoryWorld(4)
    for word in " ".join(TEXTS[0].split()[:8]).split():
        post(world, "a", word)
    with working(world.new_log(), OnnxEngine(packaged), tokenizers={"tiny-text": packaged.tokenizer}):
        bodies = answered(world, {"a": 8})["a"]
    assert np.allclose([body["probabilities"] for body in bodies], golden["probabilities"][0], atol=1e-4)


def test_what_is_no_text_is_refused_and_steps_nothing(packaged: Package) -> None:
    world = MemoryWorld(4)
    for text in ("a film", b"", b"caf\xe9", "film " * 600, "a film"):
        post(world, "a", text)
    with working(world.new_log(), OnnxEngine(packaged), tokenizers={"tiny-text": packaged.tokenizer}):
        bodies = answered(world, {"a": 5})["a"]
    assert [body.get("reason") for body in bodies] == [None, "wrong_shape", "malformed", "too_large", None]
    assert bodies[-1]["step"] == 4
    assert len(world.dead()) == 3
