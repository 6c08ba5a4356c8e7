"""The adapter selector of a request: "" (the base), "name", or "name@version"."""

import re
from dataclasses import dataclass

from graftwork.status import InvalidFieldError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # fits int64
_NAME_RULE = (
    "must be 1 to 63 characters: lower case letters, digits, '-', '_' and '.', "
    "first a letter or digit"
)


@dataclass(frozen=True, slots=True)
class Selector:
    """`version` None means what the name points at: its live version or traffic split."""

    name: str
    version: int | None = None

    @property
    def is_base(self) -> bool:
        return self.name == ""

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


BASE = Selector("")


def parse_selector(text: str, *, field: str = "adapter") -> Selector:
    """Reads a selector; raises InvalidFieldError that names `field`."""
    if text == "":
        return BASE
    name, separator, version = text.partition("@")
    parse_name(name, field=field)
    if not separator:
        return Selector(name)
    if _VERSION.fullmatch(version) is None:
        raise InvalidFieldError(field, 'the version after "@" must be a positive integer')
    return Selector(name, int(version))


def parse_name(text: str, *, field: str) -> str:
    """Reads an adapter's name; raises InvalidFieldError that names `field`."""
    if NAME.fullmatch(text) is None:
        raise InvalidFieldError(field, f"{_NAME_RULE}; got {text[:80]!r}")
    return text
