"""What is wrong with a tree of settings, in words for whoever wrote it. Knows no setting."""

import difflib
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails


def describe(detail: ErrorDetails, root: type[BaseModel]) -> str:
    """One fault of a tree of `root`, beginning with its place."""
    place = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        *parents, key = detail["loc"]
        near = difflib.get_close_matches(str(key), _keys(root, tuple(parents)), n=1)
        return f"{place}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    if detail["type"] == "missing":
        return f"{place}: is required"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if detail["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place}: {message}, got {detail['input']!r}"


def _keys(root: type[BaseModel], place: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys that the section at `place` has."""
    section = root
    for part in place:
        if isinstance(part, str):
            kind = section.model_fields[part].annotation
            (section,) = (each for each in (kind, *get_args(kind)) if _is_section(each))
    return tuple(section.model_fields)


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
