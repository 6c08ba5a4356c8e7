"""JSON objects from files nobody vouches for: no repeated keys, no NaN, no huge integers,
no deep nesting, no halves of Unicode's surrogate pairs, which no answer could quote."""

import json
from typing import Any

from graftwork_adapters.errors import InvalidArtifact


def parse_object(data: bytes, *, source: str) -> dict[str, Any]:
    """The object in `data`; raises InvalidArtifact that names `source`."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_integer,
        )
        if b"\\u" in data:  # only escapes can write half a pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidArtifact(f"{source}: not valid Unicode: half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        # ValueError covers broken Unicode, broken JSON, over-long integers and the hooks below.
        raise InvalidArtifact(f"{source}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidArtifact(f"{source}: must be a JSON object, not {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {repeated!r} is repeated")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _integer(digits: str) -> int:
    """Python's integers have no end, but arithmetic with them overflows floats."""
    value = int(digits)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"integer {digits[:40]} does not fit 64 bits")
    return value
