"""UTD-MHAD and CWRU as their authors give them: MATLAB files, in a folder or in the zip file that was downloaded.

What is read here is what `utd_mhad/*.npz` and `cwru_bearing/*.npz` hold, in the same order; export/signals.py takes
either. Every file that is missing, damaged or another than expected is named.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.io import loadmat

from export.data import DataError

File = Path | zipfile.Path

UTD_RECORDINGS = [  # action, subject, trial; subjects 2, 4, 6 and 8 are the official test half and never opened
    (action, subject, trial)
    for action in range(1, 28)
    for subject in (1, 3, 5, 7)
    for trial in range(1, 5)
    if (action, subject, trial) != (8, 1, 4)  # never recorded
]
UTD_LABELS = [
    "swipe_left", "swipe_right", "wave", "clap", "throw", "arm_cross", "basketball_shoot", "draw_x", "draw_circle_CW",
    "draw_circle_CCW", "draw_triangle", "bowling", "boxing", "baseball_swing", "tennis_swing", "arm_curl",
    "tennis_serve", "push", "knock", "catch", "pickup_throw", "jog", "walk", "sit2stand", "stand2sit", "lunge", "squat",
]  # fmt: skip
DEPTH_SHAPE = (240, 320)
DEPTH_FRAMES = 29_199  # of all clips together
CLIP_FRAMES = (41, 125)  # the shortest and the longest clip

CWRU_RECORDINGS = [  # file, fault, load (hp), samples; drive end, 12 kHz
    (105, "IR007", 0, 121_265), (106, "IR007", 1, 121_991), (118, "B007", 0, 122_571), (119, "B007", 1, 121_410),
    (130, "OR007@6", 0, 121_991), (131, "OR007@6", 1, 122_426), (169, "IR014", 0, 121_846), (170, "IR014", 1, 121_846),
    (185, "B014", 0, 121_846), (186, "B014", 1, 122_136), (197, "OR014@6", 0, 121_846), (198, "OR014@6", 1, 122_136),
    (209, "IR021", 0, 122_136), (210, "IR021", 1, 121_556), (222, "B021", 0, 121_991), (223, "B021", 1, 121_701),
    (234, "OR021@6", 0, 122_426), (235, "OR021@6", 1, 121_991), (97, "normal", 0, 243_938),
]  # fmt: skip


def is_there(folder: Path) -> bool:
    """Whether there are MATLAB files in the folder, or a zip file of its name beside it."""
    return folder.with_name(f"{folder.name}.zip").is_file() or next(folder.rglob("*.mat"), None) is not None


def utd_inertial_clips(folder: Path, wanted: str) -> list[np.ndarray]:
    """Of `Inertial/` or `Inertial.zip`: 431 × (rows, 6) float32, in the order of UTD_RECORDINGS.

    `d_iner`, float64: acceleration x, y, z (g), turning x, y, z (°/s); rounded to float32, nothing else.
    Raises DataError, with `wanted` at its end.
    """

    def rows(file: File) -> np.ndarray:
        x = _variable(file, "d_iner", wanted)
        if x.ndim != 2 or x.shape[1] != 6 or len(x) == 0 or not np.isfinite(x).all():
            raise _other(file, "d_iner of shape (rows, 6), all finite", x, wanted)
        return x.astype(np.float32)

    return _utd_clips(folder, "inertial", rows, wanted)


def utd_depth_clips(folder: Path, wanted: str) -> list[np.ndarray]:
    """Of `Depth/` or `Depth.zip`: 431 × (frames, 60, 80) uint8, in the order of UTD_RECORDINGS.

    `d_depth`, (240, 320, frames) uint16: millimetres from the camera, 0 where the background was removed.
    Raises DataError, with `wanted` at its end.
    """

    def frames(file: File) -> np.ndarray:
        x = _variable(file, "d_depth", wanted)
        shortest, longest = CLIP_FRAMES
        if x.ndim != 3 or x.shape[:2] != DEPTH_SHAPE or not shortest <= x.shape[2] <= longest:
            raise _other(file, f"d_depth of shape (240, 320, {shortest} to {longest} frames)", x, wanted)
        if x.dtype.kind == "f" and not (x == np.round(x)).all():
            raise _other(file, "d_depth in whole millimetres", x, wanted)
        body = x[x > 0]
        if x.min() < 0 or not 0 < body.size < x.size / 2 or not 2000 <= np.median(body) <= 4000:
            raise _other(file, "a person 2 to 4 m away, in millimetres, and 0 in most places", x, wanted)
        return depth_as_grey(x)

    clips = _utd_clips(folder, "depth", frames, wanted)
    found = sum(map(len, clips))
    if found != DEPTH_FRAMES:
        raise DataError(f"damaged or other data in {folder}: {found} frames, expected {DEPTH_FRAMES}\n{wanted}")
    return clips


def depth_as_grey(depth: np.ndarray) -> np.ndarray:
    """(240, 320, T) whole millimetres -> (T, 60, 80) uint8: the mean of 4×4 places, 16 mm a unit, rounded.

    The background stays 0 and darkens the rim of a person, since it counts in the mean; near is darker than far; 4.08 m
    and beyond is 255.

    Nothing says how `depth_train.npz` was made; this is what its values tell. 92 % of them are 0. Those of a rim lie
    near multiples of 11, a sixteenth of a body's 176: a mean of 4×4 places, zeros counted, rounded. A hand held before
    the chest is darker than the chest (145 before 172), and height × value of one person is the same wherever that
    person stands, within 3 to 4 %: the value is proportional to the distance, by one factor for all clips. A Kinect's
    focal length (286 pixels at this size) and people of 1.5 to 1.8 m make the factor 16 mm, within some 5 %; the
    largest value, 248, is then 3.97 m, the end of that camera's range. The published figures of this project were
    measured on `depth_train.npz`; a net trained on this conversion may differ a little.
    """
    height, width, frames = depth.shape
    places = np.minimum(depth, 4080).astype(np.uint32).reshape(height // 4, 4, width // 4, 4, frames)
    return ((places.sum((1, 3)) + 128) // 256).astype(np.uint8).transpose(2, 0, 1)


def cwru_recordings(folder: Path, wanted: str) -> list[np.ndarray]:
    """Of `97.mat`, `105.mat` …: 19 × (samples,) float32, in the order of CWRU_RECORDINGS.

    `X097_DE_time` …, (samples, 1) float64, rounded to float32. Raises DataError, with `wanted` at its end.
    """
    files = _files(folder, [f"{number}.mat" for number, *_ in CWRU_RECORDINGS], wanted)
    found = []
    for file, (number, _, _, samples) in zip(files, CWRU_RECORDINGS, strict=True):
        name = f"X{number:03d}_DE_time"
        x = _variable(file, name, wanted)
        if x.size != samples or max(x.shape) != samples or not np.isfinite(x).all():
            raise _other(file, f"{name} of shape ({samples}, 1), all finite", x, wanted)
        found.append(x.reshape(-1).astype(np.float32))
    return found


def _utd_clips(folder: Path, kind: str, read: Callable[[File], np.ndarray], wanted: str) -> list[np.ndarray]:
    names = [f"a{action}_s{subject}_t{trial}_{kind}.mat" for action, subject, trial in UTD_RECORDINGS]
    return [read(file) for file in _files(folder, names, wanted)]


def _files(folder: Path, names: list[str], wanted: str) -> list[File]:
    """These files, wherever they are inside the folder; if it has none, inside the zip file of its name beside it."""
    packed = folder.with_name(f"{folder.name}.zip")
    place = folder
    there: dict[str, File] = {path.name: path for path in folder.rglob("*.mat")}
    if not there:
        place = packed
        try:
            archive = zipfile.ZipFile(packed)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"damaged file {packed}: {error}\n{wanted}") from None
        there = {PurePosixPath(name).name: zipfile.Path(archive, name) for name in archive.namelist()}
    missing = [name for name in names if name not in there]
    if missing:
        more = f" and {len(missing) - 1} more of {len(names)} files" if len(missing) > 1 else ""
        raise DataError(f"missing file {missing[0]}{more} in {place}\n{wanted}")
    return [there[name] for name in names]


def _variable(file: File, name: str, wanted: str) -> np.ndarray:
    """An array of real numbers."""
    try:
        content = loadmat(io.BytesIO(file.read_bytes()))
    except Exception as error:  # loadmat has no error of its own: damaged bytes raise nearly anything
        raise DataError(f"damaged file {file}: {error or type(error).__name__}\n{wanted}") from None
    if name not in content:
        found = ", ".join(key for key in content if not key.startswith("__")) or "none"
        raise DataError(f"another file than expected at {file}: no variable {name}; found: {found}\n{wanted}")
    x = content[name]
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "iuf":
        raise DataError(f"another file than expected at {file}: {name} does not hold real numbers\n{wanted}")
    return x


def _other(file: File, expected: str, x: np.ndarray, wanted: str) -> DataError:
    values = f"values {x.min()} to {x.max()}" if x.size else "no values"
    return DataError(
        f"damaged or another file than expected at {file}: expected {expected}; found shape {x.shape}, "
        f"{x.dtype}, {values}\n{wanted}"
    )
