"""Values that are made for every token."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")


def quick(cls: type[T]) -> type[T]:
    """A frozen dataclass that mypy alone keeps from being changed: guarding it when it runs makes its construction
    four times as long."""
    names: dict[str, Any] = {"__annotations__": {each.name: each.type for each in fields(cls)}}  # type: ignore[arg-type]  # a dataclass
    for each in fields(cls):  # type: ignore[arg-type]  # a dataclass
        if each.default is not MISSING:
            names[each.name] = each.default
        elif each.default_factory is not MISSING:
            names[each.name] = field(default_factory=each.default_factory)
    plain: type = dataclass(type(cls.__name__, (), names))
    cls.__init__ = plain.__init__  # type: ignore[method-assign, misc]  # of the same fields
    del cls.__setattr__, cls.__delattr__
    return cls
