"""Pages of a list in the order of a key, with tokens that only their own list accepts."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Generic, TypeVar

from graftwork.status import InvalidFieldError

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    items: tuple[Item, ...]
    next_page_token: str  # "" on the last page


def check_page_size(page_size: int) -> int:
    """The number of items to give; raises InvalidFieldError. 0 means the default."""
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidFieldError(
            "page_size", f"must be 0 (for {DEFAULT_PAGE_SIZE}) to {MAX_PAGE_SIZE}; got {page_size}"
        )
    return page_size or DEFAULT_PAGE_SIZE


def encode_token(list_name: str, name: str, version: int) -> str:
    """Stands for "what follows adapter `name`, version `version`, in this list"."""
    text = json.dumps([list_name, name, version], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def decode_token(list_name: str, token: str) -> tuple[str, int]:
    """Name and version after which the page starts; raises InvalidFieldError."""
    if token == "":
        return "", 0
    try:
        value = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        value = None
    match value:
        case [str(of_list), str(name), int(version)] if of_list == list_name:
            return name, version
    raise InvalidFieldError("page_token", "is not one that this list has given")
