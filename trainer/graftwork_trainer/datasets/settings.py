"""How a snapshot is made: `DatasetSpec` with its defaults filled in, checked."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format
from graftwork.status import InvalidFieldError
from graftwork.v1 import feedback_service_pb2, training_service_pb2

from graftwork_trainer.datasets.examples import FORMATS

_MAX_COPIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSettings:
    """The fields of `DatasetSpec`, where their meaning is written."""

    selection: feedback_service_pb2.ExampleSelection
    scrub: bool = True
    validation_share: float = 0.1
    golden_share: float = 0.05
    duplicate_similarity: float = 0.9
    max_per_class: int = 0
    mixture: Mapping[str, float] = field(default_factory=dict)
    augmentation: int = 0
    balance: float = 0.0

    @property
    def format(self) -> str:
        return self.selection.format

    @classmethod
    def from_spec(cls, spec: training_service_pb2.DatasetSpec) -> "DatasetSettings":
        """Raises InvalidFieldError, with fields named as below `dataset`."""
        if spec.snapshot:
            raise InvalidFieldError("dataset.snapshot", "is there already, and not built again")
        sent = {
            name: getattr(spec, name)
            for name in (
                "scrub",
                "validation_share",
                "golden_share",
                "duplicate_similarity",
                "max_per_class",
                "augmentation",
                "balance",
            )
            if spec.HasField(name)
        }
        # The wire has 32 bits of a number that was written as a short decimal.
        sent = {n: _shortest(v) if isinstance(v, float) else v for n, v in sent.items()}
        selection = feedback_service_pb2.ExampleSelection()
        selection.CopyFrom(spec.selection)
        mixture = {task: _shortest(weight) for task, weight in sorted(spec.mixture.items())}
        return cls(selection=selection, mixture=mixture, **sent)

    def __post_init__(self) -> None:
        """Raises InvalidFieldError."""
        if self.format not in FORMATS:
            raise InvalidFieldError(
                "dataset.selection.format", f"must be one of {', '.join(FORMATS)}"
            )
        _within("validation_share", self.validation_share, 0.01, 0.5)
        _within("golden_share", self.golden_share, 0.0, 0.5)
        _within("duplicate_similarity", self.duplicate_similarity, 0.1, 1.0)
        _within("balance", self.balance, 0.0, 1.0)
        _within("augmentation", self.augmentation, 0, _MAX_COPIES)
        if self.max_per_class < 0:
            raise InvalidFieldError("dataset.max_per_class", "must not be negative")
        for task, weight in self.mixture.items():
            if not (math.isfinite(weight) and weight > 0):
                raise InvalidFieldError(f'dataset.mixture["{task}"]', "must be greater than 0")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {
            "selection": json_format.MessageToDict(self.selection),
            "scrub": self.scrub,
            "validation_share": self.validation_share,
            "golden_share": self.golden_share,
            "duplicate_similarity": self.duplicate_similarity,
            "max_per_class": self.max_per_class,
            "mixture": dict(sorted(self.mixture.items())),
            "augmentation": self.augmentation,
            "balance": self.balance,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "DatasetSettings":
        """The settings in a snapshot's manifest."""
        selection = feedback_service_pb2.ExampleSelection()
        json_format.ParseDict(value["selection"], selection)
        return cls(**{**value, "selection": selection})


def _shortest(value: float) -> float:
    """0.1 for the 32-bit float next to 0.1."""
    for digits in range(1, 9):
        candidate = float(f"{value:.{digits}g}")
        if struct.unpack("f", struct.pack("f", candidate))[0] == value:
            return candidate
    return value


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is not
        raise InvalidFieldError(f"dataset.{name}", f"must be in [{low:g}, {high:g}]")
