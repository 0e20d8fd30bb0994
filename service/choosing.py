"""Which model an entry is for. The same rule for the api, which writes the answer into the entry, and for the worker,
which meets entries that producers put into the log themselves."""

from __future__ import annotations

from collections.abc import Mapping

from service.contracts import ModelInfo
from service.errors import ModelNeeded, OtherModel, UnknownModel, WrongKind, WrongShape


def choose_model(
    models: Mapping[str, ModelInfo],
    kind: str,
    *,
    asked: str | None = None,
    bound: str | None = None,
    default: str | None = None,
    width: int | None = None,
) -> ModelInfo:
    """The model asked for, else the stream's, else `default` of that kind, else the only one that fits.

    `width` is the number of columns of samples. Raises UnknownModel, WrongKind, OtherModel, WrongShape or, when
    several or none would fit, ModelNeeded.
    """
    if bound is not None and asked is not None and asked != bound and asked in models:
        raise OtherModel(
            f"the stream is bound to model {bound!r}, the entry asks for {asked!r}; "
            "two models on one source are two streams"
        )
    named = asked or bound or default
    if named is None:
        fitting = [m for m in models.values() if m.kind == kind and (kind != "samples" or m.width == width)]
        if len(fitting) == 1:
            return fitting[0]
        of_kind = ", ".join(sorted(_shown(m) for m in models.values() if m.kind == kind)) or "none"
        columns = f" with {width} columns" if kind == "samples" else ""
        raise ModelNeeded(
            f"{'no' if not fitting else 'more than one'} model takes {kind}{columns}: name one with model; "
            f"of this kind there are: {of_kind}"
        )
    model = models.get(named)
    if model is None:
        raise UnknownModel(f"unknown model {named!r}; known are: {', '.join(sorted(models)) or 'none'}")
    if model.kind != kind:
        raise WrongKind(f"model {named!r} takes {model.kind}, not {kind}")
    if kind == "samples" and width is not None and model.width != width:
        raise WrongShape(f"model {named!r} takes rows of {model.width} columns, these have {width}")
    return model


def _shown(model: ModelInfo) -> str:
    return model.name if model.width is None else f"{model.name} ({model.width} columns)"
