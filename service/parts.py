"""The files of a model package, read within bounds: a folder from somewhere may hold links, devices and bombs, or lie
about sizes. What is wrong with one package refuses that package and nothing else."""

from __future__ import annotations

import io
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import onnxruntime

from service.errors import PackageRefused, RollcastError

MAX_MODEL_BYTES: Final = 1 << 30
MAX_TOKENIZER_BYTES: Final = 64 << 20
MAX_GOLDEN_BYTES: Final = 256 << 20  # packed; and unpacked, all arrays together
_PACKED: Final = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
)  # what numpy writes; others may take memory at once
_HEADERS: Final = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_NOWHERE: Final = "/dev/null/rollcast"  # a folder in which nothing can be
_FOLDER: Final = "session.model_external_initializers_file_folder_path"


@contextmanager
def refused_alone(folder: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes a PackageRefused: recursion, memory, a library's own errors, a panic."""
    try:
        yield
    except RollcastError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of a library in Rust
            raise
        said = " ".join(str(error).split())[:200]
        raise PackageRefused(f"{folder}: cannot be read: {type(error).__name__}: {said}", check="files") from None


def read_part(path: Path, folder: Path, most_bytes: int, check: str = "files") -> bytes:
    """A regular file in the package's folder, of at most `most_bytes`. Raises PackageRefused."""
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise PackageRefused(f"{path}: a link out of the package; expected a file in {folder}", check)
        found = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(found, "rb") as file:
            about = os.fstat(found)
            if not stat.S_ISREG(about.st_mode):
                raise PackageRefused(f"{path}: expected a regular file", check)
            data = file.read(most_bytes + 1) if about.st_size <= most_bytes else None
    except OSError as error:
        raise PackageRefused(f"{path}: cannot be read: {error.strerror}", check) from None
    except RuntimeError:  # Python's word for it before 3.13
        raise PackageRefused(f"{path}: a link that leads in a circle", check) from None
    if data is None or len(data) > most_bytes:
        raise PackageRefused(f"{path}: larger than {most_bytes} bytes", check)
    return data


def read_arrays(data: bytes, names: Sequence[str]) -> list[np.ndarray]:
    """Arrays of an npz archive by name, read no further than their headers say and the bound allows.

    Raises ValueError, KeyError and zipfile.BadZipFile."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise ValueError("not an npz archive")
    left, found = MAX_GOLDEN_BYTES, []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in names:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type not in _PACKED:
                raise ValueError(f"{name}: packed in a way that numpy does not write")
            with archive.open(member) as file:
                array = _read_array(file, name, left)  # type: ignore[arg-type]
            left -= array.nbytes
            found.append(array)
    return found


def _read_array(file: BinaryIO, name: str, most_bytes: int) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{name}: version {version} of the npy format; expected 1.0 or 2.0")
    shape, by_column, dtype = _HEADERS[version](file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "biuf" or min(shape, default=1) < 0:
        raise ValueError(f"{name}: expected an array of numbers, found {dtype} {shape}")
    if size > most_bytes:
        raise ValueError(f"{name}: {dtype} {shape} takes {size} bytes; expected {most_bytes} at most")
    data = file.read(size + 1)
    if len(data) != size:
        raise ValueError(f"{name}: {dtype} {shape} takes {size} bytes, the archive has {len(data)} or more")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C")


def open_session(model: bytes, options: onnxruntime.SessionOptions) -> Any:
    """A session of a graph whose weights are in it. ONNX Runtime would look for others in the process's current folder:
    what lies there is none of the package's, and is not in its certificate."""
    options.add_session_config_entry(_FOLDER, _NOWHERE)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
