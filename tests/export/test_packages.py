"""A package that is wrong is refused, and the error names the check, the file, what was expected and what was found."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from service.errors import PackageRefused, StartError
from service.packages import load_package, load_packages, samples, zoo_folder
from service.parity import verify


@pytest.fixture
def place(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound package, at NAME/VERSION."""
    return Path(shutil.copytree(sound, tmp_path / sound.parent.name / sound.name))


def edit_manifest(place: Path, **changes: object) -> None:
    path = place / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_model(place: Path, change: Callable[[onnx.ModelProto], None], *, honest: bool = True) -> None:
    """Changes the graph; `honest`: the manifest gets the new checksum."""
    path = place / "model.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    if honest:
        edit_manifest(place, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def refusal(place: Path) -> PackageRefused:
    with pytest.raises(PackageRefused) as caught:
        verify(load_package(place))
    return caught.value


def test_a_sound_package_passes_every_check(place: Path) -> None:
    report = verify(load_package(place))
    assert report.passed
    assert len(report.checks) == 8
    assert [check.name for check in report.checks if check.figure > check.limit] == []


def test_weights_outside_the_model_are_read_from_nowhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beside the model, where no checksum covers them, nor in the folder that the process happens to be in."""
    model = onnx.load(place / "model.onnx")
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, place / "model.onnx")
    edit_manifest(place, sha256=hashlib.sha256((place / "model.onnx").read_bytes()).hexdigest())
    monkeypatch.chdir(place)
    assert (place / "weights.bin").stat().st_size > 0
    error = refusal(place)
    assert (error.check, "its weights lie in another file: expected all of them in model.onnx" in str(error)) == (
        "graph", True,
    )  # fmt: skip


# --- files -------------------------------------------------------------------------------------------------------


def test_a_missing_manifest_is_named(place: Path) -> None:
    (place / "manifest.json").unlink()
    error = refusal(place)
    assert error.check == "files"
    assert "manifest.json" in error.detail


def test_a_missing_model_is_named(place: Path) -> None:
    (place / "model.onnx").unlink()
    assert refusal(place).check == "files"


def test_a_wrong_checksum_says_both(place: Path) -> None:
    expected = json.loads((place / "manifest.json").read_text())["sha256"]
    edit_model(place, lambda model: setattr(model, "doc_string", "changed"), honest=False)
    error = refusal(place)
    assert error.check == "sha256"
    assert expected in error.detail
    assert hashlib.sha256((place / "model.onnx").read_bytes()).hexdigest() in error.detail


def test_a_truncated_model_is_refused(place: Path) -> None:
    path = place / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(place).check == "sha256"
    edit_manifest(place, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert refusal(place).check == "graph"


def test_a_model_that_is_no_onnx_is_refused(place: Path) -> None:
    (place / "model.onnx").write_bytes(b"not a model")
    edit_manifest(place, sha256=hashlib.sha256(b"not a model").hexdigest())
    assert refusal(place).check == "graph"


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 not a zip", b"\0" * 100])
def test_a_certificate_that_cannot_be_read_is_refused(place: Path, content: bytes | None) -> None:
    (place / "golden.npz").unlink()
    if content is not None:
        (place / "golden.npz").write_bytes(content)
    error = refusal(place)
    assert error.check == "golden"
    assert "golden.npz" in error.detail


def test_a_certificate_without_a_state_is_refused(place: Path) -> None:
    stored = dict(np.load(place / "golden.npz"))
    del stored["state:c"]
    np.savez(place / "golden.npz", **stored)
    assert "state:c" in refusal(place).detail


def test_a_certificate_of_one_step_proves_nothing(place: Path) -> None:
    stored = dict(np.load(place / "golden.npz"))
    stored["x"], stored["probabilities"] = stored["x"][:, :1], stored["probabilities"][:, :1]
    np.savez(place / "golden.npz", **stored)
    error = refusal(place)
    assert error.check == "golden"
    assert "2 to 64 steps" in error.detail


# --- the manifest ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format"),
        ({"version": "1"}, "version"),
        ({"surprise": 1}, "surprise"),
        ({"name": "../up"}, "field name"),
        ({"labels": ["one"]}, "field labels"),
        ({"labels": ["same", "same"]}, "field labels"),
        ({"background": ["unknown"]}, "field background"),
        ({"kind": "frame"}, "kind frame"),
        ({"rolling": {"enter": 0.3, "exit": 0.5}}, "field rolling"),
        ({"rolling": {"half_life_s": -1}}, "half_life_s"),
        ({"gap": {"gap_s": 0}}, "gap_s"),
        ({"gap": {"policy": "guess"}}, "policy"),
    ],
)
def test_a_wrong_field_is_named(place: Path, changes: dict[str, object], said: str) -> None:
    edit_manifest(place, **changes)
    error = refusal(place)
    assert error.check == "manifest"
    assert said in error.detail
    assert "manifest.json" in error.detail


@pytest.mark.parametrize(
    "initial", [[0.5] * 7, [[0.5] * 8], [], 1e39, [1e39] + [0.0] * 7, "zeros", [None] * 8, ["0"] * 8]
)
def test_a_first_state_that_does_not_fill_the_tensor_is_refused(place: Path, initial: object) -> None:
    h, c = json.loads((place / "manifest.json").read_text())["states"]
    edit_manifest(place, states=[h | {"initial": initial}, c])
    error = refusal(place)
    assert (error.check, "initial" in error.detail) == ("manifest", True)


@pytest.mark.parametrize(("initial", "dtype"), [(0.5, "int64"), (-1, "uint8"), ([1, 256], "uint8"), (1e30, "int64")])
def test_a_first_state_of_whole_numbers_is_whole(place: Path, initial: object, dtype: str) -> None:
    edit_manifest(place, states=[{"name": "n", "shape": [2], "dtype": dtype, "initial": initial}])
    assert "states n initial: expected a number, or 2, of " in refusal(place).detail


def test_another_first_state_than_the_nets_is_found(place: Path) -> None:
    h, c = json.loads((place / "manifest.json").read_text())["states"]
    edit_manifest(place, states=[h | {"initial": [0.0] * 7 + [0.5]}, c])
    assert refusal(place).check.startswith("torch")


def test_a_manifest_that_is_no_json_is_refused(place: Path) -> None:
    (place / "manifest.json").write_text("{")
    assert refusal(place).check == "manifest"


# --- the manifest against the graph ------------------------------------------------------------------------------


def test_another_number_of_labels_is_refused(place: Path) -> None:
    edit_manifest(place, labels=["left", "middle", "right"])
    error = refusal(place)
    assert error.check == "outputs"
    assert "(any, any, 3)" in error.detail
    assert "(any, any, 2)" in error.detail


def test_another_row_width_is_refused(place: Path) -> None:
    rows = json.loads((place / "manifest.json").read_text())["rows"]
    wider = {name: [*value, value[-1]] for name, value in rows.items() if isinstance(value, list)}
    edit_manifest(place, rows={**rows, **wider, "features": ["a", "b", "c", "d"]})
    assert refusal(place).check == "inputs"


@pytest.mark.parametrize(
    "states",
    [
        [],
        [{"name": "h", "shape": [1, 8]}],
        [{"name": "h", "shape": [1, 8]}, {"name": "d", "shape": [1, 8]}],
        [{"name": "h", "shape": [1, 8]}, {"name": "c", "shape": [1, 9]}],
        [{"name": "h", "shape": [1, 8]}, {"name": "c", "shape": [1, 8], "dtype": "float64"}],
        [{"name": "h", "shape": [1, 8]}, {"name": "c", "shape": [1, 8], "batch_axis": 1}],
    ],
)
def test_states_that_are_not_the_graphs_are_refused(place: Path, states: list[dict[str, object]]) -> None:
    edit_manifest(place, states=states)
    assert refusal(place).check == "inputs"


def test_a_foreign_model_is_refused(place: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["output"])], "foreign", value[:1], value[1:])
    foreign = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (place / "model.onnx").write_bytes(foreign.SerializeToString())
    edit_manifest(place, sha256=hashlib.sha256(foreign.SerializeToString()).hexdigest())
    error = refusal(place)
    assert error.check == "inputs"
    assert "['input']" in error.detail


# --- what only running it shows ----------------------------------------------------------------------------------


def _swap_states(model: onnx.ModelProto) -> None:
    """The state pairs crossed: what comes out as h goes in as c."""
    swapped = {"h_next": "c_next", "c_next": "h_next"}
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = swapped.get(name, name)


def test_a_swapped_state_pair_fails_with_its_figure(place: Path) -> None:
    edit_model(place, _swap_states)
    error = refusal(place)
    assert error.check == "torch, step by step"
    assert "expected at most 0.0001" in error.detail


def test_edited_weights_fail_with_their_figure(place: Path) -> None:
    def nudge(model: onnx.ModelProto) -> None:
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 1.05, weights.name))

    edit_model(place, nudge)
    error = refusal(place)
    assert error.check.startswith("torch")
    assert "found 0." in error.detail


def test_weights_that_are_not_finite_fail(place: Path) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.shape == (2,):
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))

    edit_model(place, spoil)
    error = refusal(place)
    assert error.check == "distribution"
    assert "found inf" in error.detail


# --- folders -----------------------------------------------------------------------------------------------------


def test_the_highest_sound_version_is_served_and_the_rest_reported(sound: Path, tmp_path: Path) -> None:
    for version in (1, 2, 10):
        place = Path(shutil.copytree(sound, tmp_path / "tiny" / str(version)))
        edit_manifest(place, version=version)
    (tmp_path / "tiny" / "10" / "model.onnx").write_bytes(b"broken")
    (tmp_path / "tiny" / "draft").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "readme.txt").write_text("hello")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("a file")
    shutil.copytree(sound, tmp_path / "renamed" / "1")

    packages, refused = load_packages(tmp_path)

    assert {name: package.manifest.version for name, package in packages.items()} == {"tiny": 2}
    found = sorted((error.check, error.detail.removeprefix(str(tmp_path)).split(":")[0]) for error in refused)
    assert found == [
        ("files", "/empty/1/manifest.json"),
        ("files", "/foreign"),
        ("manifest", "/renamed/1/manifest.json"),
        ("sha256", "/tiny/10/model.onnx"),
    ]


def test_a_models_folder_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="expected NAME/VERSION/"):
        load_packages(tmp_path / "absent")


def test_the_schema_is_what_stored_states_depend_on(place: Path) -> None:
    schema = load_package(place).schema
    assert len(schema) == 16
    edit_manifest(place, version=2, description="other words")
    assert load_package(place).schema == schema
    edit_manifest(place, labels=["right", "left"])
    assert load_package(place).schema != schema


def test_a_package_without_samples_has_none(sound: Path) -> None:
    assert samples(load_package(sound)) == []


def test_the_zoo_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (zoo_folder() / "digits-cnn").is_dir()
