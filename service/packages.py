"""Model packages on disk: read, checked against their own graph, described. docs/formats.md shows a manifest.

NAME/VERSION/model.onnx      the graph: x and states in, probabilities and states out
             manifest.json   contracts.Manifest
             golden.npz      the parity certificate (parity.py)
             tokenizer.json  of a text model: what the `tokenizers` library reads
             card.md, *.png, training.json, samples/
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from service.contracts import Manifest, StateTensor, TextInput
from service.errors import PackageRefused, StartError
from service.parts import MAX_MODEL_BYTES, MAX_TOKENIZER_BYTES, open_session, read_part, refused_alone
from service.rolling import ROW_FORMAT

MANIFEST: Final = "manifest.json"
MODEL: Final = "model.onnx"
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32  # of what a manifest nests
MAX_STREAM_BYTES: Final = 16 << 20  # of one stream's state: batches of 64 are warmed up
MAX_STEP: Final = 16 << 20  # values in one step
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")
_TENSORS: Final = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "uint8": "tensor(uint8)",
}
_WORDS_TRIED: Final = 500
_NOBODYS_WORD: Final = "qxzvkwj"
_INPUT_DTYPE: Final = {"frame": "uint8", "samples": "float32", "text": "int64"}


@dataclass(frozen=True)
class Package:
    """A model package that agrees with its graph. Whether it computes what it was trained to is parity's question."""

    manifest: Manifest
    folder: Path

    @cached_property
    def schema(self) -> str:
        """16 hex digits: packages of equal schema understand each other's stored states."""
        states = [
            [state.name, state.shape, state.dtype]
            for state in sorted(self.manifest.states, key=lambda state: state.name)
        ]
        meaning = msgspec.json.encode([ROW_FORMAT, self.manifest.labels, states])
        return hashlib.sha256(meaning).hexdigest()[:16]

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Of a text model."""
        return _read_tokenizer(self.manifest.text, self.folder) if self.manifest.text is not None else None


class Sample(msgspec.Struct, frozen=True):
    """One piece of held-out input that ships beside a package: a PNG, or a CSV whose header names the features."""

    path: Path
    label: str
    source: str
    licence: str
    rate_hz: float | None = None  # of rows


def load_package(folder: Path) -> Package:
    """Reads NAME/VERSION/. Raises PackageRefused that names file, field, what was expected and what was found."""
    with refused_alone(folder):
        return _load(folder)


def _load(folder: Path) -> Package:
    manifest = _read_manifest(folder / MANIFEST)
    _check_manifest(manifest, folder / MANIFEST)
    model = read_part(folder / MODEL, folder, MAX_MODEL_BYTES)
    found = hashlib.sha256(model).hexdigest()
    if found != manifest.sha256:
        _refuse("sha256", folder / MODEL, f"manifest.json expects sha256 {manifest.sha256}, the file has {found}")
    _check_graph(manifest, model, folder / MODEL)
    package = Package(manifest, folder)
    if package.tokenizer is not None:
        _check_tokenizer(package.tokenizer, folder)
    return package


def load_packages(folder: Path | None = None) -> tuple[dict[str, Package], list[PackageRefused]]:
    """The highest sound version of each name in `folder` (none: the zoo), and what was refused on the way.

    A broken or foreign folder is reported and stops nothing else. Raises StartError when `folder` is not a folder.
    """
    folder = zoo_folder() if folder is None else folder
    if not folder.is_dir():
        raise StartError(f"models folder {folder}: not a folder; expected NAME/VERSION/ with model packages in it")
    packages: dict[str, Package] = {}
    refused: list[PackageRefused] = []
    for home in sorted(folder.iterdir()):
        if not home.is_dir() or home.name.startswith((".", "_")):
            continue
        try:
            versions = _versions(home)
        except PackageRefused as error:
            refused.append(error)
            continue
        for version in versions:
            try:
                package = load_package(version)
                _check_place(package.manifest, version)
            except PackageRefused as error:
                refused.append(error)
            else:
                packages[home.name] = package
                break
    return packages, refused


def _versions(home: Path) -> list[Path]:
    """The highest first."""
    with refused_alone(home):
        found = [sub for sub in home.iterdir() if sub.is_dir() and _VERSION.fullmatch(sub.name)]
    if not found:
        raise PackageRefused(f"{home}: expected a folder VERSION/ (1, 2, …) in it, found none", "files")
    return sorted(found, key=lambda path: -int(path.name))


def zoo_folder() -> Path:
    """Where the shipped packages lie: package data of `models`, which is found but never imported."""
    spec = importlib.util.find_spec("models")
    if spec is None or not spec.submodule_search_locations:
        raise StartError("the package `models`, which holds the zoo, is not installed; set the models folder instead")
    return Path(next(iter(spec.submodule_search_locations))) / "zoo"


def samples(package: Package) -> list[Sample]:
    """The held-out input that ships beside the package, in the order of samples.json; empty where there is none."""
    index = package.folder / "samples" / "samples.json"
    if not index.is_file():
        return []
    try:
        listed = msgspec.json.decode(read_part(index, package.folder, MAX_MANIFEST_BYTES, "samples"), type=_SampleList)
    except msgspec.DecodeError as error:
        _refuse("samples", index, str(error))
    return [
        Sample(index.parent / Path(item.file).name, item.label, listed.source, listed.licence, listed.rate_hz)
        for item in listed.files
    ]


class SampleFile(msgspec.Struct, frozen=True):
    file: str
    label: str


class _SampleList(msgspec.Struct, frozen=True):
    """`samples/samples.json`."""

    source: str
    licence: str
    files: list[SampleFile]
    rate_hz: float | None = None


# --- the manifest alone ------------------------------------------------------------------------------------------


def _read_manifest(path: Path) -> Manifest:
    data = read_part(path, path.parent, MAX_MANIFEST_BYTES)
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        _refuse("manifest", path, str(error))
    except RecursionError:
        _refuse("manifest", path, "nested too deeply")


def _check_manifest(manifest: Manifest, path: Path) -> None:
    """What msgspec cannot say in types."""

    def expect(right: bool, field: str, expected: str, found: object) -> None:
        if not right:
            _refuse("manifest", path, f"field {field}: expected {expected}, found {found!r}")

    labels, names = manifest.labels, [state.name for state in manifest.states]
    expect(_fits(manifest.metrics, MAX_DEPTH), "metrics", f"{MAX_DEPTH} levels at most", "more")
    expect(NAME.fullmatch(manifest.name) is not None, "name", "1 to 64 of a-z 0-9 . _ -", manifest.name)
    expect(manifest.version >= 1, "version", "a whole number from 1", manifest.version)
    expect(len(labels) >= 2 and len(set(labels)) == len(labels), "labels", "at least two, all different", labels)
    expect(all(labels), "labels", "no empty label", labels)
    expect(set(manifest.background) <= set(labels), "background", "some of the labels", manifest.background)
    given = [kind for kind, value in _inputs(manifest).items() if value is not None]
    expect(given == [manifest.kind], "frames, rows, text", f"exactly the one of kind {manifest.kind}", given)
    expect(len(set(names)) == len(names) and all(names), "states", "different names", names)
    for state in manifest.states:
        field = f"states {state.name}"
        expect(all(size > 0 for size in state.shape), f"{field} shape", "sizes from 1", state.shape)
        expect(0 <= state.batch_axis <= len(state.shape), f"{field} batch_axis", "an axis", state.batch_axis)
        expect(_begins(state), f"{field} initial", f"a number, or {math.prod(state.shape)}, of {state.dtype}", "others")
    held = sum(math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in manifest.states)
    expect(held <= MAX_STREAM_BYTES, "states", f"at most {MAX_STREAM_BYTES} bytes a stream", held)
    step = math.prod(_step_shape(manifest))
    expect(step <= MAX_STEP, "frames, rows", f"at most {MAX_STEP} values in a step", step)
    if manifest.frames is not None:
        frames = manifest.frames
        expect(min(frames.height, frames.width) > 0, "frames", "sizes from 1", (frames.height, frames.width))
        expect((frames.colour == "gray") == (frames.channels == 1), "frames", "gray 1, rgb 3", frames.channels)
    if manifest.rows is not None:
        rows = manifest.rows
        for field in ("mean", "std", "minimum", "maximum"):
            values = getattr(rows, field)
            expect(len(values) == len(rows.features) > 0, f"rows.{field}", f"{len(rows.features)} numbers", values)
            expect(bool(np.isfinite(values).all()), f"rows.{field}", "finite numbers", values)
        expect(rows.rate_hz > 0, "rows.rate_hz", "above 0", rows.rate_hz)
    if manifest.text is not None:
        text = manifest.text
        expect(Path(text.tokenizer).name == text.tokenizer, "text.tokenizer", "a file's name", text.tokenizer)
        expect(text.max_tokens >= 1, "text.max_tokens", "a whole number from 1", text.max_tokens)
    rolling = manifest.rolling
    expect(0 <= rolling.exit <= rolling.enter <= 1, "rolling", "0 ≤ exit ≤ enter ≤ 1", (rolling.exit, rolling.enter))
    for field in ("half_life_s", "dwell_s", "refractory_s", "update_s"):
        expect(getattr(rolling, field) >= 0, f"rolling.{field}", "seconds from 0", getattr(rolling, field))
    expect(manifest.gap.gap_s > 0, "gap.gap_s", "seconds above 0", manifest.gap.gap_s)


def _begins(state: StateTensor) -> bool:
    """Whether a new stream's tensor can be made of what is said: as many numbers as it has, each one of its dtype."""
    if isinstance(state.initial, list) and len(state.initial) != math.prod(state.shape):
        return False
    said = np.asarray(state.initial, np.float64)
    with np.errstate(all="ignore"):
        values = said.astype(state.dtype)
    return bool(np.isfinite(values).all()) and (values.dtype.kind == "f" or bool((values == said).all()))


def _fits(value: object, levels: int) -> bool:
    """Whether a value nests no deeper."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_fits(one, levels - 1) for one in below)


def _inputs(manifest: Manifest) -> Mapping[str, object]:
    return {"frame": manifest.frames, "samples": manifest.rows, "text": manifest.text}


def _check_place(manifest: Manifest, folder: Path) -> None:
    place, said = f"{folder.parent.name}/{folder.name}", f"{manifest.name}/{manifest.version}"
    if place != said:
        _refuse("manifest", folder / MANIFEST, f"name and version: expected {place} as the folder, found {said}")


# --- the tokenizer -----------------------------------------------------------------------------------------------


def _read_tokenizer(text: TextInput, folder: Path) -> Tokenizer:
    path = folder / text.tokenizer
    content = read_part(path, folder, MAX_TOKENIZER_BYTES)
    found = hashlib.sha256(content).hexdigest()
    if text.sha256 and found != text.sha256:
        _refuse("sha256", path, f"manifest.json expects sha256 {text.sha256}, the file has {found}")
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises plain Exception
        _refuse("tokenizer", path, f"not a tokenizer: {str(error).strip().splitlines()[0]}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _check_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Words one by one must give what they give together: else a text's state would depend on how it was cut."""
    path = folder / "tokenizer.json"
    known = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    words = [word for word, _ in known[: _WORDS_TRIED - 1] if not any(letter.isspace() for letter in word)]
    words.insert(len(words) // 2, _NOBODYS_WORD)
    one_by_one = [id_ for word in words for id_ in tokenizer.encode(word, add_special_tokens=False).ids]
    together = tokenizer.encode(" ".join(words), add_special_tokens=False).ids
    if one_by_one != together:
        _refuse("tokenizer", path, "words by themselves give other tokens than in one text: expected the same")
    if not tokenizer.encode(_NOBODYS_WORD, add_special_tokens=False).ids:
        _refuse("tokenizer", path, "an unknown word gives no token: expected an unknown token")


# --- the manifest against the graph ------------------------------------------------------------------------------


def _check_graph(manifest: Manifest, model: bytes, path: Path) -> None:
    """Names, types and sizes of every input and output. Sizes that vary are None below."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = open_session(model, options)
    except Exception as error:  # ONNX Runtime's errors share no base class
        if "External data" in str(error):
            _refuse("graph", path, "its weights lie in another file: expected all of them in model.onnx")
        _refuse("graph", path, f"not a model ONNX Runtime can load: {str(error).strip().splitlines()[0]}")
    inputs = {"x": (_INPUT_DTYPE[manifest.kind], [None, None, *_step_shape(manifest)])}
    outputs = {"probabilities": ("float32", [None, None, len(manifest.labels)])}
    for state in manifest.states:
        shape: list[int | None] = [*state.shape]
        shape.insert(state.batch_axis, None)
        inputs[state.name] = outputs[f"{state.name}_next"] = (state.dtype, shape)
    _compare("inputs", inputs, {value.name: value for value in session.get_inputs()}, path)
    _compare("outputs", outputs, {value.name: value for value in session.get_outputs()}, path)


def _step_shape(manifest: Manifest) -> list[int]:
    """Shape of one step of x."""
    if manifest.frames is not None:
        return [manifest.frames.height, manifest.frames.width, manifest.frames.channels]
    return [len(manifest.rows.features)] if manifest.rows is not None else []


def _compare(
    check: str,
    expected: Mapping[str, tuple[str, list[int | None]]],
    found: Mapping[str, onnxruntime.NodeArg],
    path: Path,
) -> None:
    if expected.keys() != found.keys():
        _refuse(check, path, f"the manifest expects {check} {sorted(expected)}, the graph has {sorted(found)}")
    for name, (dtype, shape) in expected.items():
        value = found[name]
        if value.type != _TENSORS[dtype]:
            _refuse(check, path, f"{name}: the manifest expects {_TENSORS[dtype]}, the graph has {value.type}")
        sizes = [size if isinstance(size, int) else None for size in value.shape]
        fits = len(sizes) == len(shape) and all(
            size == wanted or (check == "outputs" and size is None) for size, wanted in zip(sizes, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            actual = ", ".join("any" if size is None else str(size) for size in sizes)
            _refuse(check, path, f"{name}: the manifest expects shape ({wanted}), the graph has ({actual})")


def _refuse(check: str, path: Path, detail: str) -> NoReturn:
    raise PackageRefused(f"{path}: {detail}", check=check)
