"""What a control entry does to its stream: reset, settings, restore, delete, silence. In its turn, like a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from service import rolling
from service.codec import RESTORED, id_number
from service.contracts import StreamSettings, ttl_s_of
from service.controls import Control, NewSettings
from service.errors import Malformed, OtherModel, UnknownModel
from service.portable import read_state, restore_row
from service.worker.model import ServedModel
from service.worker.shard import Item, Stream


class Controls:
    """Carries out controls. Changes streams and tables; used by Stepper only. `forget` frees a stream's row."""

    def __init__(self, models: Mapping[str, ServedModel], state_ttl_s: float, forget: Callable[[Stream], None]) -> None:
        self._models = models
        self._state_ttl_s = state_ttl_s
        self._forget = forget

    def carry_out(self, item: Item, control: Control) -> bool:
        """Returns whether labels that were inside have left. Raises EntryError, and has then changed nothing."""
        if control.settings is not None:
            return self._settings(item, control.settings)
        if control.state is not None:
            return self._restore(item, control.state)
        if control.after is not None:
            return self._silence(item, control.after)
        stream = item.key
        if control.action == "delete":
            self._begin(stream, b"deleted")
            stream.seq, stream.seq_id, stream.settings, stream.usual = None, b"-", StreamSettings(), None
            item.deleted = True
        elif stream.stepped != b"-":  # a stream that never stepped has nothing to reset: its next step is its first
            self._begin(stream, b"reset")
        self._forget(stream)
        item.forget = True
        return True

    def _settings(self, item: Item, given: NewSettings) -> bool:
        """All of the settings are as given; only the model stays when none is named."""
        stream, bound = item.key, item.key.settings.model
        if given.model is not None:
            self._model(given.model)
        if given.state_ttl_s is not None and given.state_ttl_s > self._state_ttl_s:
            raise Malformed(
                f"settings: state_ttl_s is {given.state_ttl_s:g}, expected at most the deployment's state_ttl_s, "
                f"{self._state_ttl_s:g}: states are not kept for longer"
            )
        model = given.model or bound
        served = self._models.get(model or "")
        ttl_s = ttl_s_of(given, None if served is None else served.manifest, self._state_ttl_s)
        if given.idle_exit_s is not None and given.idle_exit_s > ttl_s:
            raise Malformed(
                f"settings: idle_exit_s is {given.idle_exit_s:g}, expected at most the stream's time to live, "
                f"{ttl_s:g}: then its state is over, and with it what was inside"
            )
        stream.settings = StreamSettings(
            model, given.rolling, given.gap, given.freshness, given.state_ttl_s, given.idle_exit_s
        )
        stream.usual = None if served is None else served.freshness
        item.settings = stream.settings
        if bound is None or model == bound:
            return False
        if stream.stepped != b"-":  # another model cannot go on from this one's state
            self._begin(stream, b"version")
        self._forget(stream)
        item.forget = True
        return True

    def _restore(self, item: Item, data: bytes) -> bool:
        """The state becomes that of the object; it is held as of this entry, whatever position it once had: TTL and
        gap are counted from here."""
        stream, state = item.key, read_state(data)
        bound = stream.settings.model
        if bound is not None and state.model != bound:
            raise OtherModel(f"the state is of model {state.model!r}, stream {stream.name!r} is bound to {bound!r}")
        model = self._model(state.model)
        row = restore_row(model.layout, state)
        self._forget(stream)
        stream.model, stream.slot, stream.restart = model, model.table.put(row), None
        stream.stepped, stream.stepped_ms = item.entry.id + RESTORED, item.entry.ms
        if bound is None:
            stream.settings = item.settings = msgspec.structs.replace(stream.settings, model=model.name)
            stream.usual = model.freshness
        self._keep(item, model)
        return True

    def _silence(self, item: Item, after: str) -> bool:
        """Nothing was stepped after the entry `after` for so long that what is inside leaves; the state goes on. Does
        nothing where something was, or nothing is inside. It is no sign of life: TTL, gaps and idleness count on."""
        stream, model = item.key, item.key.model
        try:
            limit = id_number(after)
        except ValueError as error:
            raise Malformed(f"control 'silence': after: {error}") from None
        item.quiet = stream.last > 0  # of a stream that nobody knows, what this leaves is to be swept away in its time
        row = None if model is None else model.table.row(stream.slot)
        if model is None and stream.settings.model not in {None, *self._models}:
            return False  # what is inside cannot be seen here: it waits for whoever serves the model
        if model is None or row is None or not row["inside"].any():
            item.open = False
            return False
        if id_number(stream.stepped.removesuffix(RESTORED)) > limit:
            return False
        own = stream.settings.rolling or model.manifest.rolling
        rolling.leave(row, round(own.refractory_s * 1e6))
        self._keep(item, model)
        return True

    def _keep(self, item: Item, model: ServedModel) -> None:
        """The state as it is now goes into the entry's commit."""
        row = model.table.row(item.key.slot)
        item.open = bool(row["inside"].any())
        (item.state,) = model.layout.encode(model.table.gather(np.array([item.key.slot])))

    def _begin(self, stream: Stream, stepped: bytes) -> None:
        """`stepped` says in the position why there is no state any more."""
        stream.stepped, stream.stepped_ms = stepped, 0
        stream.restart = {b"reset": "reset", b"version": "version", b"deleted": "first"}[stepped]  # type: ignore[assignment]

    def _model(self, name: str) -> ServedModel:
        model = self._models.get(name)
        if model is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise UnknownModel(f"unknown model {name[:100]!r}; known are: {known}")
        return model
