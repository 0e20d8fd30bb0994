"""docs/formats.md is read back through the code: its examples, keys, reasons and problem types."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from rollcast.entries import read_logged
from service import codec, contracts, controls, keys
from service.cli.recording import FORMAT, Head
from service.contracts import Manifest
from service.ports import WorkerInfo

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(kind: str) -> list[tuple[str, str]]:
    """(what stands behind the kind, the text)."""
    return [(more, text.rstrip("\n")) for found, more, text in EXAMPLE.findall(PAGE) if found == kind]


def one(kind: str) -> str:
    ((_, text),) = examples(kind)
    return text


def unescaped(text: str) -> bytes:
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1")


@pytest.mark.parametrize(("entry_id", "text"), examples("entry"))
def test_an_example_of_an_entry_is_one(entry_id: str, text: str) -> None:
    pairs = [line.split(" ", 1) for line in text.splitlines()]
    entry = codec.parse_entry(
        entry_id.encode(), [part for name, value in pairs for part in (name.encode(), unescaped(value))]
    )
    assert entry.fault is None
    assert entry.kind == dict(pairs)["kind"]
    if entry.kind == "control":
        assert controls.decode_control(entry.data).action in controls.ACTIONS


@pytest.mark.parametrize("text", [text for _, text in examples("record")])
def test_an_example_of_a_record_is_one(text: str) -> None:
    record = codec.decode_record(text.encode())
    assert msgspec.json.decode(codec.encode_record(record)) == msgspec.json.decode(text.encode())


def test_an_example_of_a_recording_is_one() -> None:
    head, *entries = one("recording").splitlines()
    assert msgspec.json.decode(head, type=Head).format == FORMAT
    samples, control = (read_logged(line) for line in entries)
    assert samples.data is not None
    assert samples.shape == (2, 3)
    assert controls.decode_control(msgspec.json.encode(control.control)).action == "reset"


def test_every_type_of_record_has_an_example() -> None:
    shown = [msgspec.json.decode(text.encode())["type"] for _, text in examples("record")]
    assert set(shown) == set(contracts.RECORD_TYPES)


def test_every_reason_to_restart_is_explained() -> None:
    for reason in contracts.Restart.__args__:  # type: ignore[attr-defined]
        assert f"`{reason}` (" in PAGE, reason


def test_the_other_examples_survive_a_round_trip() -> None:
    head, position = one("head").encode(), one("pos").encode()
    assert codec.parse_head(head).encode() == head
    assert codec.parse_position(position).encode() == position
    assert (
        codec.encode_feed(word.encode() for pair in codec.parse_feed(one("feed").encode()) for word in pair)
        == one("feed").encode()
    )
    assert codec.decode_settings(one("settings").encode()).model == "digits-cnn"
    assert msgspec.json.decode(one("worker").encode(), type=WorkerInfo).models["digits-cnn"] == 1


def test_the_manifest_is_one_and_every_field_of_it_is_explained() -> None:
    manifest = msgspec.json.decode(one("manifest").encode(), type=Manifest)
    table = PAGE.partition("| `kind` | `frame`, `samples` or `text`")[2]
    for name in Manifest.__struct_fields__:
        assert f"`{name}`" in table or name in ("format", "name", "version", "kind"), name
    assert manifest.interval_s == 0.02


def test_every_key_is_described() -> None:
    described = set(re.findall(r"^\| `rollcast:(\S+)` \|", PAGE, re.MULTILINE))
    shard = keys.ShardKeys("rollcast", 3)
    spelt = [
        getattr(shard, name) for name in keys.ShardKeys.__slots__ if name not in ("shard", "out_prefix", "state_prefix")
    ]
    spelt += [shard.state("STREAM"), shard.out("STREAM")]
    deployment = [keys.meta_key("rollcast"), keys.workers_key("rollcast"), keys.worker_key("rollcast", "ID")]
    assert described == {key.decode().removeprefix("rollcast:") for key in spelt} | {
        key.removeprefix("rollcast:") for key in deployment
    }
