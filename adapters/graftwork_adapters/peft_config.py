"""adapter_config.json with typed access, and the rule that no field is overlooked.

Each field is one of: consumed by the method's lowering; inert, for a reason written down; supported
only at the values that leave the arithmetic alone; or unknown, and then only null, false or empty,
which in PEFT's configs mean that a feature is off. All else is refused by name.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from graftwork_adapters.errors import InvalidArtifact, UnsupportedField

BASE_DIGEST_FIELD = "graftwork_base_digest"
TASK_ID_FIELD = "graftwork_task_id"  # which task of a multitask file the version serves
LABELS_FIELD = "graftwork_labels"  # names of a classifier's labels, in order

# Fields of every method that do not touch the arithmetic.
COMMON_INERT: Mapping[str, str] = {
    "auto_mapping": "tells PEFT which class to load the base with",
    "base_model_name_or_path": "a path on the machine that trained; the digest decides",
    "inference_mode": "whether PEFT makes the weights trainable",
    "peft_type": "selects the method",
    "peft_version": "which PEFT wrote the file",
    "revision": "which revision of the base was trained on; the digest decides",
    BASE_DIGEST_FIELD: "checked against the base by lowering.py",
}
COMMON_REQUIRED: Mapping[str, tuple[object, ...]] = {
    # Other tasks have heads that are not part of a causal model.
    "task_type": (None, "CAUSAL_LM", "SEQ_CLS"),
}


class PeftConfig:
    """Fields of adapter_config.json; each accessor raises InvalidArtifact that names the field."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    @property
    def peft_type(self) -> str:
        return self.string("peft_type")

    @property
    def base_digest(self) -> str | None:
        """The base that the file was trained on, where our own trainer wrote it."""
        if self._fields.get(BASE_DIGEST_FIELD) is None:
            return None
        return self.string(BASE_DIGEST_FIELD)

    @property
    def task_id(self) -> int | None:
        """The task of a multitask file, from 0; None where none is chosen."""
        value = self._fields.get(TASK_ID_FIELD)
        if value is not None and (type(value) is not int or value < 0):
            raise _wrong_type(TASK_ID_FIELD, "an integer from 0", value)
        return value

    def get(self, name: str, default: Any) -> Any:
        """The raw value, for fields with values of several types."""
        return self._fields.get(name, default)

    def string(self, name: str) -> str:
        value = self._fields.get(name)
        if not isinstance(value, str):
            raise _wrong_type(name, "a string", value)
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self._fields.get(name, default)
        if not isinstance(value, bool):
            raise _wrong_type(name, "true or false", value)
        return value

    def positive_integer(self, name: str) -> int:
        value = self._fields.get(name)
        if type(value) is not int or value < 1:
            raise _wrong_type(name, "a positive integer", value)
        return value

    def natural_number(self, name: str) -> int:
        """0 or a positive integer; 0 where the field is absent."""
        value = self._fields.get(name, 0)
        if type(value) is not int or value < 0:
            raise _wrong_type(name, "0 or a positive integer", value)
        return value

    def seed(self, name: str) -> int:
        """An integer that torch.Generator.manual_seed takes."""
        value = self._fields.get(name)
        if type(value) is not int or not 0 <= value < 2**63:
            raise _wrong_type(name, "an integer from 0 to 2**63 - 1", value)
        return value

    def number(self, name: str) -> float:
        return _number(name, self._fields.get(name))

    def strings_or_pattern(self, name: str) -> tuple[str, ...] | str | None:
        """A list of names, a regular expression, or None where the field is absent or null."""
        value = self._fields.get(name)
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _wrong_type(name, "a string or a list of strings", value)
        return tuple(value)

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of names; empty where the field is absent or null."""
        value = self.strings_or_pattern(name)
        if isinstance(value, str):
            raise _wrong_type(name, "a list of strings", value)
        return value or ()

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers; a single integer reads as a list of one."""
        value = self._fields.get(name)
        if value is None:
            return None
        items = value if isinstance(value, list) else [value]
        if not all(type(item) is int for item in items):
            raise _wrong_type(name, "an integer or a list of integers", value)
        return tuple(items)

    def numbers_by_pattern(self, name: str) -> dict[str, float]:
        value = self._fields.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _wrong_type(name, "an object of numbers", value)
        return {key: _number(f"{name}.{key[:80]}", item) for key, item in value.items()}

    def check_fields(
        self,
        *,
        consumed: Iterable[str],
        inert: Mapping[str, str],
        required: Mapping[str, tuple[object, ...]],
    ) -> None:
        """Refuses by name every field that nobody has accounted for; raises UnsupportedField.

        `required` gives, per field, the values that leave the arithmetic alone; the first is shown.
        """
        known = {*consumed, *inert, *COMMON_INERT}
        required = {**COMMON_REQUIRED, **required}
        for name, value in self._fields.items():
            if name in required:
                accepted = required[name]
                if not any(_same(value, choice) for choice in accepted):
                    listed = " or ".join(json.dumps(choice) for choice in accepted)
                    raise UnsupportedField(name, _shown(value), listed)
            elif name not in known and not _is_off(value):
                raise UnsupportedField(
                    name[:80], _shown(value), "the field left out, null or false"
                )


def _number(name: str, value: Any) -> float:
    if type(value) not in {int, float} or not math.isfinite(value):
        raise _wrong_type(name, "a finite number", value)
    return float(value)


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ([], {}, "")


def _same(value: Any, choice: object) -> bool:
    return type(value) is type(choice) and bool(value == choice)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _wrong_type(name: str, wanted: str, value: Any) -> InvalidArtifact:
    return InvalidArtifact(f"adapter_config.json: {name} must be {wanted}, not {_shown(value)}")
