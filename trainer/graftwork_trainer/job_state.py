"""What a job has done so far, durably, so that another process goes on with it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from graftwork_adapters.durable import write_file

STATE_FILE = "state.json"


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of values that the search tried."""

    number: int
    parameters: Mapping[str, Any]
    loss: float | None  # on the validation split; None where it could not be trained


@dataclass(frozen=True, slots=True)
class PhaseState:
    """Each field is set when its phase has come so far; `verdict` is cleared where another version
    went live meanwhile."""

    snapshot: str = ""  # digest
    trials: tuple[Trial, ...] = ()
    chosen: Mapping[str, Any] | None = None  # values that the search found best
    version: str = ""  # "name@version" of the candidate
    verdict: Mapping[str, Any] | None = None  # of the gate: passed, message, incumbent
    canary: Mapping[str, Any] | None = None  # the same in every attempt
    durations_s: Mapping[str, float] = field(default_factory=dict)  # by phase, of all attempts


class StateFile:
    """The state in a job's work folder; `state` is what is on disk."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE_FILE
        self.state = PhaseState()
        if self._path.exists():
            value = json.loads(self._path.read_text(encoding="utf-8"))
            value["trials"] = tuple(Trial(**trial) for trial in value["trials"])
            self.state = PhaseState(**value)

    def update(self, **changes: Any) -> None:
        """Durable when it returns."""
        state = replace(self.state, **changes)
        write_file(self._path, json.dumps(asdict(state)).encode())
        self.state = state
