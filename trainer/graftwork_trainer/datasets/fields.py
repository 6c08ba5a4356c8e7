"""Reads fields of decoded JSON objects; each function raises InvalidExample under the full name."""

import math
from collections.abc import Mapping, Set
from datetime import UTC, datetime
from typing import Any

from graftwork_trainer.errors import InvalidExample

_MISSING: Any = object()


def mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidExample(name, f"must be an object, not {type(value).__name__}")
    return value


def only(sent: Mapping[str, Any], known: Set[str], name: str) -> None:
    """Refuses keys that are no fields."""
    if unknown := sorted(sent.keys() - known):
        raise InvalidExample(
            f"{name}.{unknown[0][:80]}", f"is no field; these are {', '.join(sorted(known))}"
        )


def text(sent: Mapping[str, Any], key: str, name: str, *, default: str = _MISSING) -> str:
    value = _get(sent, key, name, default)
    if not isinstance(value, str):
        raise InvalidExample(f"{name}.{key}", f"must be a text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidExample(f"{name}.{key}", "is not valid Unicode") from None
    return value


def number(sent: Mapping[str, Any], key: str, name: str) -> float:
    value = _get(sent, key, name, _MISSING)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise InvalidExample(f"{name}.{key}", "must be a finite number")
    return float(value)


def boolean(sent: Mapping[str, Any], key: str, name: str, *, default: bool = _MISSING) -> bool:
    value = _get(sent, key, name, default)
    if not isinstance(value, bool):
        raise InvalidExample(f"{name}.{key}", "must be true or false")
    return value


def sequence(
    sent: Mapping[str, Any], key: str, name: str, *, default: list[Any] = _MISSING
) -> list[Any]:
    value = _get(sent, key, name, default)
    if not isinstance(value, list):
        raise InvalidExample(f"{name}.{key}", f"must be a list, not {type(value).__name__}")
    return value


def texts(sent: Mapping[str, Any], key: str, name: str) -> tuple[str, ...]:
    """A list of texts; none where it is left out."""
    values = sequence(sent, key, name, default=[])
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidExample(f"{name}.{key}[{index}]", "must be a text")
    return tuple(values)


def time(sent: Mapping[str, Any], key: str, name: str) -> datetime:
    """An RFC 3339 time."""
    value = text(sent, key, name)
    try:
        parsed = datetime.fromisoformat(value)
        if parsed.tzinfo is not None:
            return parsed.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter beyond year 1 or 9999 in UTC
        pass
    raise InvalidExample(
        f"{name}.{key}", 'must be a time with its zone, such as "2026-01-31T12:00:00Z"'
    )


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _get(sent: Mapping[str, Any], key: str, name: str, default: Any) -> Any:
    value = sent.get(key, default)
    if value is _MISSING:
        raise InvalidExample(f"{name}.{key}", "is missing")
    return value
