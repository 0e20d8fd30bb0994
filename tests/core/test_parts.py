"""A package that is broken in whatever way is refused by itself: the others are served, and nothing is taken for it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.app import served_packages
from service.errors import PackageRefused
from service.packages import load_package, load_packages, zoo_folder
from service.parity import verify
from service.parts import MAX_GOLDEN_BYTES
from service.settings import Settings

SOUND, BROKEN = "digits-mlp", "question-lstm"
VERSION = {SOUND: "1", BROKEN: "2"}
Break = Callable[[Path], None]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two packages, one of which is to be broken."""
    for name in (SOUND, BROKEN):
        for file in ("manifest.json", "model.onnx", "golden.npz", "tokenizer.json"):
            source = zoo_folder() / name / VERSION[name] / file
            if source.exists():
                place = tmp_path / "models" / name / VERSION[name]
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place)
    return tmp_path / "models"


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """3 GiB more than there is: who asks for more gets MemoryError, and whoever takes more fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def manifest(**changes: Any) -> Break:
    def change(place: Path) -> None:
        path = place / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def raw_manifest(field: str, text: str) -> Break:
    def change(place: Path) -> None:
        path = place / "manifest.json"
        fields = json.loads(path.read_text()) | {field: "HERE"}
        path.write_text(json.dumps(fields).replace('"HERE"', text))

    return change


def states(**changes: Any) -> Break:
    def change(place: Path) -> None:
        found = json.loads((place / "manifest.json").read_text())["states"]
        manifest(states=[found[0] | changes, *found[1:]])(place)

    return change


def instead(name: str, prepare: Callable[[Path], object]) -> Break:
    def change(place: Path) -> None:
        (place / name).unlink()
        prepare(place / name)

    return change


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300 << 30)  # takes no room


def tokenizer(data: bytes) -> Break:
    def change(place: Path) -> None:
        (place / "tokenizer.json").write_bytes(data)
        text = json.loads((place / "manifest.json").read_text())["text"]
        manifest(text=text | {"sha256": hashlib.sha256(data).hexdigest()})(place)

    return change


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header.encode() + data


def golden(member: bytes, *, packing: int = zipfile.ZIP_DEFLATED) -> Break:
    """The golden steps with another `x`."""

    def change(place: Path) -> None:
        old = zipfile.ZipFile(io.BytesIO((place / "golden.npz").read_bytes()))
        with zipfile.ZipFile(place / "golden.npz", "w", packing) as new:
            for name in old.namelist():
                new.writestr(name, member if name == "x.npy" else old.read(name))

    return change


def floats(*shape: int, kind: str = "<f4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape!r}, }}\n"


BROKEN_IN_SOME_WAY: dict[str, tuple[Break, str]] = {
    "nested metrics": (raw_manifest("metrics", '{"a":' * 100_000 + "1" + "}" * 100_000), "manifest"),
    "nested lists": (raw_manifest("metrics", '{"a":' + "[" * 50_000 + "]" * 50_000 + "}"), "manifest"),
    "nested a little": (raw_manifest("metrics", '{"a":' * 900 + "1" + "}" * 900), "manifest"),
    "long numbers": (raw_manifest("version", "9" * 5_000), "manifest"),
    "invalid UTF-8": (instead("manifest.json", lambda path: path.write_bytes(b'{"name": "\xff"}')), "manifest"),
    "manifest is a device": (instead("manifest.json", lambda path: path.symlink_to("/dev/zero")), "files"),
    "manifest is a pipe": (instead("manifest.json", os.mkfifo), "files"),
    "manifest is a folder": (instead("manifest.json", Path.mkdir), "files"),
    "manifest is large": (instead("manifest.json", large), "files"),
    "manifest leads in a circle": (instead("manifest.json", lambda path: path.symlink_to(path)), "files"),
    "model is a device": (instead("model.onnx", lambda path: path.symlink_to("/dev/zero")), "files"),
    "model is a pipe": (instead("model.onnx", os.mkfifo), "files"),
    "model is large": (instead("model.onnx", large), "files"),
    "tokenizer is a device": (instead("tokenizer.json", lambda path: path.symlink_to("/dev/urandom")), "files"),
    "tokenizer is large": (instead("tokenizer.json", large), "files"),
    "tokenizer is nested": (tokenizer(b"[" * 1_000_000), "tokenizer"),
    "tokenizer is binary": (tokenizer(b"\xff\xfe" * 100), "tokenizer"),
    "golden is a device": (instead("golden.npz", lambda path: path.symlink_to("/dev/zero")), "golden"),
    "golden is large": (instead("golden.npz", large), "golden"),
    "golden of 2^40 floats": (golden(npy(floats(1 << 40))), "golden"),
    "golden of 2^31 floats": (golden(npy(floats(1 << 20, 1 << 11))), "golden"),
    "golden of 2^70 floats": (golden(npy(floats(1 << 35, 1 << 35))), "golden"),
    "golden of less than nothing": (golden(npy(floats(-1, -5))), "golden"),
    "golden of objects": (golden(npy(floats(2, kind="|O"))), "golden"),
    "golden of long text": (golden(npy(floats(2, kind="<U1000000000"))), "golden"),
    "golden with too little": (golden(npy(floats(2, 3), b"1234")), "golden"),
    "golden with too much": (golden(npy(floats(1, 1), bytes(4096))), "golden"),
    "golden nested": (golden(npy("(" * 9_000 + ")" * 9_000)), "golden"),
    "golden that is code": (golden(npy("__import__('os').abort()")), "golden"),
    "golden of version 3": (golden(npy(floats(2), bytes(8), (3, 0))), "golden"),
    "golden that unpacks to much": (golden(npy(floats(MAX_GOLDEN_BYTES), bytes(MAX_GOLDEN_BYTES + 1))), "golden"),
    "golden packed by LZMA": (golden(npy(floats(2), bytes(8)), packing=zipfile.ZIP_LZMA), "golden"),
    "golden that is no archive": (instead("golden.npz", lambda path: path.write_bytes(b"PK\x03\x04" * 9)), "golden"),
    "state of terabytes": (states(shape=[1 << 20, 1 << 20]), "manifest"),
    "state of 2^80 bytes": (states(shape=[1 << 40, 1 << 40]), "manifest"),
    "tokens without end": (raw_manifest("labels", "[" + ",".join(f'"{n}"' for n in range(60_000)) + "]"), "outputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN_IN_SOME_WAY))
def test_a_broken_package_is_refused_alone(models: Path, tmp_path: Path, name: str) -> None:
    damage, check = BROKEN_IN_SOME_WAY[name]
    place = models / BROKEN / VERSION[BROKEN]
    damage(place)
    with pytest.raises(PackageRefused) as refused:
        verify(load_package(place))
    assert refused.value.check == check
    assert str(place) in refused.value.detail
    assert len(refused.value.detail) < 2_000
    served = served_packages(Settings(models=models, home=tmp_path / "no-home"))
    assert list(served) == [SOUND]


def test_a_file_that_lies_elsewhere_is_not_the_package_s(models: Path, tmp_path: Path) -> None:
    place = models / BROKEN / VERSION[BROKEN]
    elsewhere = tmp_path / "elsewhere.json"
    (place / "tokenizer.json").rename(elsewhere)
    (place / "tokenizer.json").symlink_to(elsewhere)
    with pytest.raises(PackageRefused, match="a link out of the package"):
        load_package(place)
    elsewhere.rename(place / "real.json")
    (place / "tokenizer.json").unlink()
    (place / "tokenizer.json").symlink_to("real.json")  # as mounted configuration is
    load_package(place)


def test_a_package_may_itself_be_linked_to(models: Path, tmp_path: Path) -> None:
    (models / BROKEN).rename(tmp_path / "real")
    (models / BROKEN).symlink_to(tmp_path / "real")
    assert sorted(load_packages(models)[0]) == [SOUND, BROKEN]


def test_what_was_read_is_what_numpy_reads(models: Path) -> None:
    """Also arrays in column order, and of version 2 of their format."""
    place = models / SOUND / "1"
    with np.load(place / "golden.npz") as stored:
        arrays = {name: np.asfortranarray(stored[name]) for name in stored.files}
    with zipfile.ZipFile(place / "golden.npz", "w") as new:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.lib.format.write_array(file, array, version=(2, 0))
            new.writestr(f"{name}.npy", file.getvalue())
    assert verify(load_package(place)).passed
