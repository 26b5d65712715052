"""What pydantic has against settings, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from fewfire.contracts import did_you_mean
from fewfire.disk import one_line

__all__ = ["InOneLine", "complaint"]


class InOneLine(type(BaseModel)):  # type: ignore[misc]  # the metaclass of pydantic's models, which has no public name
    """For a class of settings that people make themselves: ``TrainConfig(step=3)`` says what is wrong in a line.

    Not in ``__init__``: pydantic calls that for sections of sections as well, whose complaints need the whole name.
    """

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        try:
            return super().__call__(*args, **settings)
        except ValidationError as error:
            raise ValueError(complaint(error, cls, "help(fewfire.TrainConfig) shows")) from None


def complaint(error: ValidationError, model: type[BaseModel], where_to_look: str) -> str:
    """The first of the complaints, with the setting that may have been meant.

    ``where_to_look``: what prints the settings that ``model`` has, and a verb.
    """
    first = error.errors(include_url=False)[0]
    where = one_line(".".join(map(str, first["loc"])), 80)
    if first["type"] != "extra_forbidden":
        message = one_line(first["msg"].removeprefix("Value error, "))
        return f"{where}: {message}; got {one_line(repr(first['input']), 80)}" if where else message
    *sections, name = map(str, first["loc"])
    section: Any = model
    for key in sections:
        section = section.model_fields[key].annotation
    elsewhere = [path for path in _settings(model, "") if path.rpartition(".")[2] == name]
    hint = f"; did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(name, section.model_fields)
    return f"no setting {where!r}; {where_to_look} what there is{hint}"


def _settings(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The dotted names of all settings."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name}.")
