"""The process that other people's code runs in: `python -m graftwork_trainer.rewards.child`.

The first line on standard input says what to load; each further line is an answer, and gets one
line on standard output. All are JSON objects:

    {"plugin": "politeness"}  or  {"json_schema": {...}}
        {"ready": true}                                 or {"unknown_plugin": [installed, ...]}
                                                        or {"failed": "why it cannot be loaded"}
    {"prompt": ..., "completion": "..."}
        {"reward": 0.5}                                 or {"raised": "ValueError: ..."}

A plug-in is a function (prompt, completion) -> float under an entry point of the group
`graftwork.rewards`. A prompt is a text, a list of {"role": ..., "content": ...}, or a list of token
ids.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import IO, Any

from jsonschema.validators import validator_for
from referencing import Registry

PLUGIN_GROUP = "graftwork.rewards"

_PR_SET_PDEATHSIG = 1


def main() -> None:
    _die_with_parent()
    # What a plug-in prints goes to the log; the answers have a descriptor that it does not know.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    lines = iter(sys.stdin)
    function = _load(json.loads(next(lines)), answers)
    if function is None:
        return
    for line in lines:
        asked = json.loads(line)
        _tell(answers, _reward(function, asked["prompt"], asked["completion"]))


def _load(wanted: dict[str, Any], answers: IO[str]) -> Callable[[Any, str], Any] | None:
    """None where it told why there is nothing to call."""
    try:
        if "json_schema" in wanted:
            function = _schema_check(wanted["json_schema"])
        else:
            found = entry_points(group=PLUGIN_GROUP)
            if wanted["plugin"] not in found.names:
                _tell(answers, {"unknown_plugin": sorted(found.names)})
                return None
            function = found[wanted["plugin"]].load()
            if not callable(function):
                _tell(answers, {"failed": f"{type(function).__name__} is not callable"})
                return None
    except Exception as error:  # noqa: BLE001 - code of others, whose every error is told
        _tell(answers, {"failed": _described(error)})
        return None
    _tell(answers, {"ready": True})
    return function


def _schema_check(schema: Any) -> Callable[[Any, str], float]:
    # An empty registry: a schema that refers to one elsewhere is not fetched.
    validator = validator_for(schema)(schema, registry=Registry())

    def check(_prompt: Any, completion: str) -> float:
        try:
            value = json.loads(completion, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if validator.is_valid(value) else 0.0

    return check


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _reward(function: Callable[[Any, str], Any], prompt: Any, completion: str) -> dict[str, Any]:
    try:
        return {"reward": float(function(prompt, completion))}
    except Exception as error:  # noqa: BLE001 - as above
        return {"raised": _described(error)}


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _tell(answers: IO[str], value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")


def _die_with_parent() -> None:
    """Also while a plug-in hangs, when nobody reads standard input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
