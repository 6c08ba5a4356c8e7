"""Reads fields of messages; each function raises InvalidFieldError under the field's full name."""

import math
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message
from graftwork.status import InvalidFieldError

_MAX_SHOWN = 80


class Fields:
    """The fields of one message, under the path at which the request has it."""

    def __init__(self, message: Message, path: str) -> None:
        self._message = message
        self._path = path

    def name(self, field: str) -> str:
        return f"{self._path}.{field}"

    def number(
        self,
        field: str,
        default: Any,
        *,
        at_least: float | None = None,
        above: float | None = None,
        at_most: float | None = None,
    ) -> Any:
        """An optional number; `default` where it is not set."""
        if not self._message.HasField(field):
            return default
        value = getattr(self._message, field)
        if isinstance(value, float):  # 32 bits on the wire, of what was a short decimal
            value = float(f"{value:.7g}")
        fits = (
            math.isfinite(value)
            and (at_least is None or value >= at_least)
            and (above is None or value > above)
            and (at_most is None or value <= at_most)
        )
        if not fits:
            raise InvalidFieldError(
                self.name(field), f"must be {_range(at_least, above, at_most)}; got {value:g}"
            )
        return value

    def one_of(self, field: str, known: Iterable[str], *, default: str) -> str:
        """A text among `known`; `default` where it is empty."""
        value: str = getattr(self._message, field)
        if value == "":
            return default
        names = sorted(known)
        if value not in names:
            raise InvalidFieldError(
                self.name(field),
                f"{value[:_MAX_SHOWN]!r} is not known; it must be one of {', '.join(names)}",
            )
        return value

    def fail(self, field: str, message: str) -> InvalidFieldError:
        return InvalidFieldError(self.name(field), message)


def _range(at_least: float | None, above: float | None, at_most: float | None) -> str:
    lower = f"at least {at_least:g}" if at_least is not None else ""
    if above is not None:
        lower = f"above {above:g}"
    upper = f"at most {at_most:g}" if at_most is not None else ""
    return " and ".join(filter(None, (lower, upper))) or "a finite number"
