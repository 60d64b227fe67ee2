"""Options, written once: a field of a dataclass is the Python keyword, the command-line option and its help.

A class of options is a frozen dataclass that inherits `Options` and makes its fields with `option`. Every value is
checked when an instance is made, and every message has one form: "NAME VALUE must be WHAT".
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What an option means and which values it takes; bounds of None are absent."""

    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    derived: str = ""
    """Where the default is None: what is then used, in words."""
    short: str = ""
    """Another name on the command line, as people type it."""

    def allows(self, value: float) -> bool:
        """Whether a number lies within the bounds."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def bounds(self) -> str:
        """The bounds in words, such as "above 0 and at most 1"; "" without any."""
        words = (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        )
        return " and ".join(f"{word} {_number(bound)}" for word, bound in words if bound is not None)


def option(default: Any, help_text: str, **rule: Any) -> Any:
    """A dataclass field with its `Rule`, whose other fields are the keywords."""
    return dataclasses.field(default=default, metadata={"rule": Rule(help=help_text, **rule)})


def check(name: str, value: object, kind: Any, rule: Rule | None = None) -> None:
    """Raise `ValueError` unless `value` is of `kind` (int, float, bool, str, a union of them with None) and in bounds.

    A float may be given as an int, must be finite, and no number may be given as a bool.
    """
    rule = rule or Rule(help="")
    kinds = set(typing.get_args(kind)) if isinstance(kind, types.UnionType) else {kind}
    if value is None and types.NoneType in kinds:
        return
    if isinstance(value, bool):
        fits = bool in kinds
    elif isinstance(value, (int, float)):
        fits = (int in kinds and isinstance(value, int)) or (float in kinds and _is_finite(value))
        fits = fits and rule.allows(value)
    elif isinstance(value, str):
        several = any(typing.get_origin(k) is tuple for k in kinds)  # of which one may be given alone
        fits = several or (str in kinds and (not rule.choices or value in rule.choices))
    else:
        several = any(typing.get_origin(k) is tuple for k in kinds)
        fits = several and (isinstance(value, Sequence) or (_of_pairs(kinds) and isinstance(value, Mapping)))
    if not fits:
        raise ValueError(f"{name} {value!r} must be {_wanted(kinds, rule)}")


def _of_pairs(kinds: set[Any]) -> bool:
    """Whether one of them is a tuple of pairs, which a mapping may be given for."""
    return any(typing.get_origin(inner) is tuple for kind in kinds for inner in typing.get_args(kind))


def _is_finite(value: float) -> bool:
    """Also of an int, which may be more than any float."""
    return abs(value) < 2**1023 if isinstance(value, int) else math.isfinite(value)


def check_int(name: str, value: object, *, at_least: int | None = None, at_most: int | None = None) -> None:
    """`check` for a whole number that is an argument, not an option."""
    check(name, value, int, Rule(help="", at_least=at_least, at_most=at_most))


class Options:
    """Base of frozen dataclasses whose fields are options: strict, checked, and readable from a dict."""

    noun: ClassVar[str] = "option"
    """What messages call a field."""

    def __post_init__(self) -> None:
        for name, (kind, rule) in self.rules().items():
            check(name, getattr(self, name), kind, rule)

    @classmethod
    @functools.cache
    def rules(cls) -> dict[str, tuple[Any, Rule]]:
        """Each field's type and rule, in order."""
        kinds = typing.get_type_hints(cls)
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        return {f.name: (kinds[f.name], f.metadata.get("rule", Rule(help=""))) for f in fields}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """An instance from a dict with all or some of the fields; `ValueError` for an unknown one."""
        if not isinstance(values, Mapping):
            raise ValueError(f"{cls.__name__} is made from a dict, not {type(values).__name__}")
        cls.check_fields(values)
        return cls(**values)

    @classmethod
    def check_fields(cls, values: Mapping[str, Any]) -> None:
        """`ValueError` for a field that is unknown or out of range, each seen alone."""
        for key, value in values.items():
            if key not in cls.rules():
                raise ValueError(f"unknown {cls.noun} {key!r}: {nearest(key, cls.rules())}")
            check(key, value, *cls.rules()[key])

    def to_dict(self) -> dict[str, Any]:
        """All fields and values, ready for JSON; `from_dict` reads it back."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again."""
        return self.from_dict(self.to_dict() | changes)


def nearest(name: object, known: Iterable[str]) -> str:
    """The rest of a message about an unknown name: "did you mean ...?", or all the known ones."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def _wanted(kinds: set[Any], rule: Rule) -> str:
    if bool in kinds:
        wanted = "true or false"
    elif int in kinds or float in kinds:
        words = "a number" if float in kinds else "a whole number"
        wanted = ", ".join(filter(None, [words, rule.bounds(), *(f"or {choice}" for choice in rule.choices)]))
    elif rule.choices:
        wanted = f"one of {', '.join(rule.choices)}"
    elif any(typing.get_origin(kind) is tuple for kind in kinds):
        wanted = "a mapping" if _of_pairs(kinds) else "a text or several"
    else:
        wanted = "a text"
    return f"{wanted}, or None" if types.NoneType in kinds else wanted


def _number(bound: float) -> str:
    """2**63 - 1 is better read as that."""
    for bits in (63, 64):
        if bound == 2**bits - 1:
            return f"2**{bits} - 1"
    return f"{bound:g}" if isinstance(bound, float) else str(bound)
