"""The values that travel between the parts: entries, predictions, manifests. Plain, frozen, without behaviour.

Shapes: B batch, T time, F feature, H W C frame, K label. Times are seconds as floats at the edge and
integer microseconds (`*_us`) inside, so that a block cut differently gives exactly the same times.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from service.errors import BadStreamId, EntryError, TooLarge

Kind = Literal["frame", "samples", "text", "control"]
RecordType = Literal["prediction", "refused", "dropped", "duplicate", "done"]
Restart = Literal["first", "start", "ttl", "gap", "reset", "version", "lost"]

KINDS: Final[tuple[Kind, ...]] = ("frame", "samples", "text", "control")
RECORD_TYPES: Final[tuple[RecordType, ...]] = ("prediction", "refused", "dropped", "duplicate", "done")

STREAM_CHARACTERS: Final = "A-Za-z0-9._:-"
STREAM_ID: Final = re.compile(rf"[A-Za-z0-9][{STREAM_CHARACTERS}]{{0,127}}")
NO_STREAM: Final = "?"  # the stream under which entries without a legal stream id are answered; never a legal id

TOKEN_BYTES: Final = 64  # a text of more bytes than this times its allowed tokens is not even tokenised
FRAME_S: Final = 0.04  # between frames, where neither times nor the package say: 25 a second
TOKEN_S: Final = 0.25  # between the words of a text, which have one time: about as fast as people read
MAX_ROWS: Final = 4096  # rows of one block; longer recordings are cut by the producer


def check_stream_id(stream: str) -> str:
    """Returns `stream`, or raises BadStreamId that says what is legal.

    >>> check_stream_id("cam-1")
    'cam-1'
    """
    if STREAM_ID.fullmatch(stream) is None:
        raise BadStreamId(
            f"stream id {stream[:140]!r}: expected 1 to 128 characters of A-Z a-z 0-9 . _ : - "
            "that begin with a letter or a digit"
        )
    return stream


# --- entries -----------------------------------------------------------------------------------------------------


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One item of a shard's log, parsed. `fault` is set when it cannot be: such an entry is refused in its turn."""

    id: bytes  # b"MS-SEQ", as the broker gave it
    ms: int
    number: int  # the id as one comparable integer: MS << 64 | SEQ
    stream: str
    kind: str
    data: bytes = b""
    model: str | None = None
    time: float | None = None  # event time, s; of the last row of a block
    seq: int | None = None
    start: bool = False
    end: bool = False
    shape: tuple[int, int] | None = None  # (T, F) of samples
    interval_s: float | None = None  # between rows
    traceparent: str | None = None
    fault: EntryError | None = None
    retry_of: str | None = None  # id of the refused entry that this one repeats
    raw: dict[bytes, bytes] | None = None  # with a fault: the fields as they came, for the quarantine


class Limits(NamedTuple):
    """The largest entries that are taken: by the api, and by the worker where producers write to the log themselves;
    and what decoding them may cost."""

    frame_bytes: int = 8 * 2**20  # of an image
    entry_bytes: int = 8 * 2**20  # of samples or text
    pixels: int = 16_777_216  # width × height of an image
    decode_s: float = 10.0  # of CPU time, that decoding a picture may take whose structure does not bound it closer
    decode_memory_bytes: int = 448 * 2**20  # of such pictures together


# --- records -----------------------------------------------------------------------------------------------------


class Rolling(msgspec.Struct, frozen=True, gc=False):
    """The smoothed scores after the entry's last step."""

    label: str
    score: float
    probabilities: list[float]  # (K,)


class Event(msgspec.Struct, frozen=True, gc=False):
    """What the rolling automaton decided. `event` is the id of the entry in which the label entered."""

    type: Literal["enter", "update", "exit"]
    label: str
    event: str
    step: int
    time: float  # s, of this decision
    start: float  # s, when the label rose above its threshold
    score: float  # smoothed, now
    peak: float  # highest smoothed score since `start`


class Prediction(msgspec.Struct, frozen=True, tag="prediction", tag_field="type", gc=False):
    """The record of an entry that was stepped: it reports the entry's last step."""

    id: str
    stream: str
    model: str
    version: int
    time: float
    step: int
    label: str
    score: float
    probabilities: list[float]  # (K,)
    rolling: Rolling
    events: list[Event]
    restarted: Restart | None = None
    missed: int | msgspec.UnsetType = (
        msgspec.UNSET
    )  # numbers between this `seq` and the last; without: lost unread, at most
    retry_of: str | msgspec.UnsetType = msgspec.UNSET


class Refused(msgspec.Struct, frozen=True, tag="refused", tag_field="type", omit_defaults=True):
    """The record of an entry that could not be stepped. `reason` is stable, `detail` is for people."""

    id: str
    stream: str
    reason: str
    detail: str
    model: str | None = None
    retry_of: str | None = None


class Dropped(msgspec.Struct, frozen=True, tag="dropped", tag_field="type", omit_defaults=True):
    """The record of an entry that came too late to be stepped.

    `late`: its seq lies below the stream's last. In a stream of which only the latest entry counts: `superseded`, a
    newer one waits; `stale`, it is older than `max_age_s`. With `start` or `end` it still ends the state: `events`.
    """

    id: str
    stream: str
    reason: str
    detail: str
    model: str | None = None
    events: list[Event] = []
    retry_of: str | None = None


class Duplicate(msgspec.Struct, frozen=True, tag="duplicate", tag_field="type", omit_defaults=True):
    """The record of an entry whose seq was finished before; `of` is that entry's id."""

    id: str
    stream: str
    of: str
    seq: int
    model: str | None = None


class Done(msgspec.Struct, frozen=True, tag="done", tag_field="type", omit_defaults=True):
    """The record of a control entry that was carried out."""

    id: str
    stream: str
    action: str
    events: list[Event] = []
    retry_of: str | None = None


Record = Prediction | Refused | Dropped | Duplicate | Done


# --- model packages ----------------------------------------------------------------------------------------------


class FrameInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a frame becomes (H, W, C) uint8."""

    height: int
    width: int
    channels: Literal[1, 3]
    colour: Literal["gray", "rgb"]
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    interpolation: Literal["area", "linear"] = "area"
    reduced_decoding: bool = False  # decoding at 1/2, 1/4 or 1/8 scale was measured to keep the accuracy
    rate_hz: float | None = None


class RowInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a sample row holds: F features, `rate_hz` rows a second, and the training data's statistics."""

    features: list[str]
    rate_hz: float
    mean: list[float]
    std: list[float]
    minimum: list[float]
    maximum: list[float]


class TextInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a text becomes token ids: by the package's `tokenizer.json`."""

    tokenizer: str = "tokenizer.json"
    max_tokens: int = 512
    sha256: str = ""  # of the tokenizer's file


def check_text_size(size: int, spec: TextInput) -> None:
    """What is known of a text of `size` bytes before it is tokenised. Raises TooLarge."""
    if size > TOKEN_BYTES * spec.max_tokens:
        raise TooLarge(
            f"text of {size} bytes: the model takes {spec.max_tokens} tokens; cut it into several entries of at most "
            f"{TOKEN_BYTES * spec.max_tokens} bytes"
        )


class StateTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One recurrent tensor: graph input `name`, graph output `name + "_next"`. Paired by name."""

    name: str
    shape: list[int]  # of ONE stream, without the batch axis
    dtype: Literal["float32", "float64", "int64", "int32", "uint8"] = "float32"
    batch_axis: int = 0  # where B stands in the graph's tensor
    initial: float | list[float] = 0.0  # of a new stream: every element, or the elements one by one in C order


class RollingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Smoothing and thresholds (rolling.py). Seconds are event time."""

    half_life_s: float = 0.5  # 0: no smoothing
    enter: float = 0.6
    exit: float = 0.4
    dwell_s: float = 0.0  # a label must stay at or above `enter` this long before it enters
    refractory_s: float = 0.0  # after an exit the label cannot enter again for this long
    update_s: float = 1.0  # at most one `update` in this time


class GapPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a hole of more than `gap_s` between two entries' times does, or a step back: `carry` the state on or `reset`
    it."""

    policy: Literal["carry", "reset"] = "carry"
    gap_s: float = 10.0


class Freshness(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which of a stream's waiting entries are stepped: `every` one, or the `latest` only, none older than `max_age_s`.

    Age counts from the entry's id, by the worker's clock. In `every` nothing is dropped; `max_age_s` is not looked at.
    """

    mode: Literal["every", "latest"] = "every"
    max_age_s: Annotated[float, msgspec.Meta(gt=0)] | None = None  # none: of any age


class TrainingData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the weights were trained on, and under which terms."""

    name: str
    source: str
    licence: str
    split: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.json` of a model package (docs/formats.md). Exactly one of `frames`, `rows`, `text` is set, by kind."""

    format: Literal[1]
    name: str
    version: int
    kind: Literal["frame", "samples", "text"]
    labels: list[str]  # K
    sha256: str  # of model.onnx
    states: list[StateTensor] = []
    background: list[str] = []  # labels that make no events
    frames: FrameInput | None = None
    rows: RowInput | None = None
    text: TextInput | None = None
    many_steps: bool = True  # T > 1 in one call is allowed
    rolling: RollingSettings = RollingSettings()
    gap: GapPolicy = GapPolicy()
    freshness: Freshness = Freshness()
    state_ttl_s: Annotated[float, msgspec.Meta(gt=0)] | None = None  # shorter than the deployment's; never longer
    idle_exit_s: Annotated[float, msgspec.Meta(gt=0)] | None = None  # after this silence its streams' labels exit
    family: str = ""  # "cnn2d", "lstm", …
    parameters: int = 0
    data: TrainingData | None = None
    weights_terms: str = ""
    metrics: dict[str, Any] = {}
    created: str = ""  # ISO 8601
    description: str = ""

    @property
    def interval_s(self) -> float:
        """Seconds between steps when an entry does not say."""
        if self.rows is not None:
            return 1.0 / self.rows.rate_hz
        if self.frames is not None and self.frames.rate_hz:
            return 1.0 / self.frames.rate_hz
        return 0.0

    @property
    def nominal_s(self) -> float:
        """Seconds that a step counts for where it does not advance its stream's time."""
        return self.interval_s or (FRAME_S if self.text is None else TOKEN_S)

    @property
    def info(self) -> ModelInfo:
        """What choosing a model for an entry needs to know."""
        width = len(self.rows.features) if self.rows is not None else None
        return ModelInfo(self.name, self.version, self.kind, width)


class ModelInfo(msgspec.Struct, frozen=True):
    """What choosing a model for an entry needs to know of a package."""

    name: str
    version: int
    kind: str
    width: int | None = None  # F of rows


# --- settings of a stream ----------------------------------------------------------------------------------------


class StreamSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a shard's `settings` hash holds for one stream: JSON. `model` is bound by PUT or by the first entry.

    What is None is as the package has it, and a `state_ttl_s` that it has not is the deployment's.
    """

    model: str | None = None
    rolling: RollingSettings | None = None
    gap: GapPolicy | None = None
    freshness: Freshness | None = None
    state_ttl_s: Annotated[float, msgspec.Meta(gt=0)] | None = None  # shorter than the deployment's; never longer
    idle_exit_s: Annotated[float, msgspec.Meta(gt=0)] | None = None  # after this silence its labels exit


IDLE_INTERVALS: Final = 10  # of the usual time between two steps, that a stream may be silent for with a label inside
IDLE_EXIT_S: Final = 30.0  # and so long at least, where nobody said


def ttl_s_of(settings: StreamSettings, manifest: Manifest | None, deployment_s: float) -> float:
    """A stream's time to live: its own, else its package's, at most the deployment's."""
    own_s = settings.state_ttl_s or (manifest.state_ttl_s if manifest is not None else None)
    return deployment_s if own_s is None else min(deployment_s, own_s)


def idle_exit_s_of(settings: StreamSettings, manifest: Manifest | None, deployment_ttl_s: float) -> float:
    """The silence after which a stream's labels exit. Never above the time to live: what is not told until the state is
    over would come with the next entry, if one ever comes.

    >>> idle_exit_s_of(StreamSettings(), None, 86_400.0), idle_exit_s_of(StreamSettings(state_ttl_s=2.0), None, 60.0)
    (30.0, 2.0)
    """
    own_s = settings.idle_exit_s or (manifest.idle_exit_s if manifest is not None else None)
    usual_s = IDLE_INTERVALS * manifest.interval_s if manifest is not None else 0.0
    return min(ttl_s_of(settings, manifest, deployment_ttl_s), own_s or max(IDLE_EXIT_S, usual_s))
