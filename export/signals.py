"""Readers of public data sets of movement and vibration: UTD-MHAD (depth video, inertial rows), CWRU bearings."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from export import matlab
from export.data import Data, DataError, Split, _digest
from service.contracts import TrainingData

# --- UTD-MHAD: 27 actions ----------------------------------------------------------------------------------------

UTD_ADDRESS = "https://personal.utdallas.edu/~kehtar/UTD-MHAD.html"
UTD_SHA256 = {  # of x, all frames or rows in the file's order; the official inertial rows have the same
    "depth_train.npz": "7e4a9e0b868ea9e30a25c0bb2bc6e2715909917c93036d82a5106356ae123184",
    "inertial_train.npz": "f413458f5f8dc09856f7253c9912f207e3fd8f34883b47fa8461e429cfcb0655",
}
UTD_FEATURES = ["acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"]
UTD_ACTIONS = 27
UTD_CLIPS = 431


def utd_depth(folder: Path) -> Data:
    """431 clips of real depth video, 41 to 125 frames of 60×80 grey at 30 Hz, background removed; 4 people.

    Reads `depth_train.npz`; without it the official `Depth.zip`, unpacked or not, made smaller by matlab.depth_as_grey.
    """
    path = folder / "utd_mhad" / "depth_train.npz"
    wanted = _utd_wanted(path, "Depth", (60, 80), np.uint8)
    official = path.parent / "Depth"
    if path.is_file() or not matlab.is_there(official):
        read = _utd_npz(path, (60, 80), np.uint8, wanted)
    else:
        read = _utd_official(matlab.utd_depth_clips(official, wanted))
    return _by_person(*read, "clips of depth video", final_axis=True)


def utd_inertial(folder: Path) -> Data:
    """431 sequences of 107 to 326 rows at 50 Hz: acceleration (g) and turning (°/s) of wrist or thigh; 4 people.

    Reads `inertial_train.npz`; without it the official `Inertial.zip`, unpacked or not.
    """
    path = folder / "utd_mhad" / "inertial_train.npz"
    wanted = _utd_wanted(path, "Inertial", (6,), np.float32)
    official = path.parent / "Inertial"
    if path.is_file() or not matlab.is_there(official):
        read = _utd_npz(path, (6,), np.float32, wanted)
    else:
        read = _utd_official(matlab.utd_inertial_clips(official, wanted))
        check_digest(official, np.concatenate(read[0]), UTD_SHA256[path.name], wanted)
    return _by_person(*read, "inertial sequences", UTD_FEATURES)


Clips = tuple[list[np.ndarray], np.ndarray, list[str], np.ndarray, list[str]]
"""Sequences, labels as places in the list of actions, names, subjects, actions."""


def _by_person(
    x: list[np.ndarray],
    y: np.ndarray,
    names: list[str],
    people: np.ndarray,
    labels: list[str],
    what: str,
    features: list[str] | None = None,
    final_axis: bool = False,
) -> Data:
    about = TrainingData(
        name=f"UTD-MHAD, {what}",
        source="C. Chen, R. Jafari, N. Kehtarnavaz: UTD-MHAD: A Multimodal Dataset for Human Action Recognition "
        "Utilizing a Depth Camera and a Wearable Inertial Sensor, ICIP 2015",
        licence="free for research with citation",
        split="subjects 1, 3, 5 and 7, each left out once (the official training half; subjects 2, 4, 6, 8 are its "
        "test and were never seen)",
    )
    sha256 = _digest(*x)
    clips = [clip[..., None] for clip in x] if final_axis else x
    return Data(Split(clips, y, names, people), None, None, labels, about, sha256, features or [])


def _utd_wanted(path: Path, official: str, shape: tuple[int, ...], dtype: type) -> str:
    return (
        f"UTD-MHAD: get {official}.zip from {UTD_ADDRESS} and put it into {path.parent}/, unpacked as {official}/ or "
        f"not; or {path.name}: `x` concatenated (… × {' × '.join(map(str, shape))}, {dtype.__name__}), `length`, "
        "`action` 1 to 27, `subject`, `trial`, `action_names`"
    )


def _utd_npz(path: Path, shape: tuple[int, ...], dtype: type, wanted: str) -> Clips:
    keys = ("x", "length", "action", "subject", "trial", "action_names")
    x, length, action, subject, trial, actions = read_npz(path, keys, wanted)
    check_digest(path, x, UTD_SHA256[path.name], wanted)
    expect(path, len(length) == len(action) == len(subject) == len(trial) == UTD_CLIPS, f"{UTD_CLIPS} clips", wanted)
    expect(path, x.dtype == dtype and x.shape[1:] == shape, f"x of shape (…, {shape}) and type {dtype}", wanted)
    expect(path, int(length.sum()) == len(x) and length.min() > 0, "lengths that add up to the length of x", wanted)
    expect(path, len(actions) == UTD_ACTIONS and 1 <= action.min() <= action.max() <= UTD_ACTIONS, "27 actions", wanted)
    labels = [str(name) for name in actions]
    names = [f"a{a}_s{s}_t{t}" for a, s, t in zip(action, subject, trial, strict=True)]
    return cut(x, length), action.astype(np.int64) - 1, names, subject.astype(np.int64), labels


def _utd_official(x: list[np.ndarray]) -> Clips:
    action, subject, _ = np.array(matlab.UTD_RECORDINGS, np.int64).T
    names = [f"a{a}_s{s}_t{t}" for a, s, t in matlab.UTD_RECORDINGS]
    return x, action - 1, names, subject, list(matlab.UTD_LABELS)


# --- CWRU: bearings ----------------------------------------------------------------------------------------------

CWRU_ADDRESS = "https://engineering.case.edu/bearingdatacenter/download-data-file"
CWRU_SHA256 = "2cdd2faa872b1537860d6149036ba6f8fb38ebe955798c62ee5b065d5160c9bc"  # of x
CWRU_HZ = 12_000
CWRU_BLOCK = 96  # samples a row: 8 ms, 125 rows a second
CWRU_FAULTS = [
    "normal", "IR007", "IR014", "IR021", "B007", "B014", "B021", "OR007@6", "OR014@6", "OR021@6",
]  # fmt: skip


def cwru(folder: Path) -> Data:
    """19 recordings of vibration, 12 kHz, 10 labels; a row is a block of 96 samples. Split in time, recording by
    recording: the first 55 % to train, up to 70 % to validate, the last 30 % to test. Never random windows."""
    recordings = _cwru(folder)
    return _cwru_data(
        train=[(name, y, _part(x, 0.0, 0.55)) for name, y, _, x in recordings],
        validation=[(name, y, _part(x, 0.55, 0.7)) for name, y, _, x in recordings],
        test=[(name, y, _part(x, 0.7, 1.0)) for name, y, _, x in recordings],
        split="in time inside each recording: first 55 % to train, 55 to 70 % to validate, last 30 % to test",
    )


def cwru_load(folder: Path) -> Data:
    """The same recordings split by the motor's load: learnt without load, tested under 1 hp."""
    recordings = _cwru(folder)
    idle, loaded = ([r for r in recordings if r[2] == load] for load in (0, 1))
    return _cwru_data(
        train=[(name, y, _part(x, 0.0, 0.8)) for name, y, _, x in idle],
        validation=[(name, y, _part(x, 0.8, 1.0)) for name, y, _, x in idle],
        test=[(name, y, x) for name, y, _, x in loaded],
        split="by load: 0 hp to train (first 80 % in time) and to validate (last 20 %), 1 hp to test",
    )


def _cwru_data(
    train: list[tuple[str, int, np.ndarray]],
    validation: list[tuple[str, int, np.ndarray]],
    test: list[tuple[str, int, np.ndarray]],
    split: str,
) -> Data:
    about = TrainingData(
        name="CWRU bearings, drive end, 12 kHz",
        source="Case Western Reserve University Bearing Data Center",
        licence="public download, no licence text",
        split=split,
    )

    def made(parts: list[tuple[str, int, np.ndarray]]) -> Split:
        rows = [x[: len(x) // CWRU_BLOCK * CWRU_BLOCK].reshape(-1, CWRU_BLOCK) for _, _, x in parts]
        y = np.array([label for _, label, _ in parts], np.int64)
        return Split(rows, y, [name for name, _, _ in parts], np.array([int(name) for name, _, _ in parts], np.int64))

    features = [f"s{i:02d}" for i in range(CWRU_BLOCK)]
    return Data(made(train), made(validation), made(test), CWRU_FAULTS, about, CWRU_SHA256, features)


def _cwru(folder: Path) -> list[tuple[str, int, int, np.ndarray]]:
    """Of each recording: its file's number, its label, the load (hp), its samples (n,) float32.

    Of `cwru_12k_DE.npz`; without it of the official `97.mat`, `105.mat` ….
    """
    path = folder / "cwru_bearing" / "cwru_12k_DE.npz"
    numbers = ", ".join(str(number) for number, *_ in sorted(matlab.CWRU_RECORDINGS))
    wanted = (
        f"CWRU: get the 19 drive-end recordings at 12 kHz (loads 0 and 1 hp) from {CWRU_ADDRESS} and put them into "
        f"{path.parent}/ as NUMBER.mat ({numbers}); or {path.name}: `x` concatenated (… × 1, float32), `length`, "
        "`fault`, `load_hp`, `file_id`"
    )
    if path.is_file() or not matlab.is_there(path.parent):
        return _cwru_npz(path, wanted)
    recordings = matlab.cwru_recordings(path.parent, wanted)
    check_digest(path.parent, np.concatenate(recordings), CWRU_SHA256, wanted)
    return [
        (str(number), CWRU_FAULTS.index(fault), load, samples)
        for (number, fault, load, _), samples in zip(matlab.CWRU_RECORDINGS, recordings, strict=True)
    ]


def _cwru_npz(path: Path, wanted: str) -> list[tuple[str, int, int, np.ndarray]]:
    x, length, fault, load, number = read_npz(path, ("x", "length", "fault", "load_hp", "file_id"), wanted)
    check_digest(path, x, CWRU_SHA256, wanted)
    expect(path, len(length) == len(fault) == len(load) == len(number) == 19, "19 recordings", wanted)
    expect(path, int(length.sum()) == x.size and length.min() >= 120_000, "lengths that add up to that of x", wanted)
    expect(path, set(fault.tolist()) == set(CWRU_FAULTS), f"the faults {', '.join(CWRU_FAULTS)}", wanted)
    parts = zip(number, fault.tolist(), load, cut(x.reshape(-1), length), strict=True)
    return [(str(n), CWRU_FAULTS.index(name), int(hp), samples) for n, name, hp, samples in parts]


def _part(x: np.ndarray, start: float, end: float) -> np.ndarray:
    return x[int(start * len(x)) : int(end * len(x))]


# --- npz files ---------------------------------------------------------------------------------------------------


def read_npz(path: Path, keys: tuple[str, ...], wanted: str) -> list[np.ndarray]:
    """The arrays of these names. Raises DataError that names the file, what is wrong and what was `wanted`."""
    if not path.is_file():
        raise DataError(f"missing file {path}\n{wanted}")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return [stored[key] for key in keys]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"damaged file {path}: {error}\n{wanted}") from None


def check_digest(path: Path, x: np.ndarray, sha256: str, wanted: str) -> None:
    found = _digest(x)
    if found != sha256:
        raise DataError(
            f"damaged or other data in {path}: its values have SHA-256 {found}, expected {sha256}\n{wanted}"
        )


def expect(path: Path, right: bool, expected: str, wanted: str) -> None:
    if not right:
        raise DataError(f"damaged file {path}: expected {expected}\n{wanted}")


def cut(x: np.ndarray, length: np.ndarray) -> list[np.ndarray]:
    """What was concatenated, one by one."""
    return np.split(x, np.cumsum(length)[:-1].astype(int))
