"""Which modules a config speaks of, by PEFT's matching rules, with a bound on the time it takes.

Patterns come from files nobody vouches for, and a regular expression can take exponential time:
the `regex` engine matches with a timeout and without the interpreter's lock.
"""

import math
import re
import time
from collections.abc import Iterable, Mapping

import regex

from graftwork_adapters.errors import InvalidArtifact

ALL_LINEAR = "all-linear"
_BUDGET_S = 2.0  # for all patterns of one adapter
_MAX_PATTERN_LENGTH = 4096
_MAX_REPEATS = 1000  # counted repetitions multiply where they nest
_COUNTED = re.compile(r"\{(\d{0,4})(?:,(\d{0,4}))?\}")
_CODE_POINT = re.compile(r"\\[uUNx]")
_OUTSIDE_LAYERS = regex.compile(r"(?!.*\.\d+\.)")


class Matcher:
    """Matches module names for one adapter; raises InvalidArtifact when its time is up."""

    def __init__(self, budget_s: float = _BUDGET_S) -> None:
        self._deadline = time.monotonic() + budget_s
        self._compiled: dict[str, regex.Pattern[str]] = {}

    def match(self, pattern: str, text: str, *, whole: bool = False) -> "regex.Match[str] | None":
        """Like re.match, or re.fullmatch where `whole`."""
        compiled = self._compiled.get(pattern)
        if compiled is None:
            compiled = self._compiled[pattern] = self._compile(pattern)
        match = compiled.fullmatch if whole else compiled.match
        try:
            return match(text, timeout=self._remaining_s(), concurrent=True)
        except TimeoutError:
            raise _too_slow() from None

    def _compile(self, pattern: str) -> "regex.Pattern[str]":
        self._remaining_s()
        _check_plain(pattern)
        try:
            re.compile(pattern)  # what PEFT matches with knows none of the engine's extensions
            return regex.compile(pattern, cache_pattern=False)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise InvalidArtifact(
                f"adapter_config.json: {pattern[:80]!r} is not a regular expression: {error}"
            ) from None

    def _remaining_s(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise _too_slow()
        return remaining


class PatternTable:
    """PEFT's rank_pattern and alpha_pattern: the first pattern that matches a name's end decides
    (`peft.utils.other.get_pattern_key`)."""

    def __init__(self, values: Mapping[str, float], matcher: Matcher) -> None:
        self._values = values
        self._matcher = matcher

    def get(self, module: str, default: float) -> float:
        for pattern, value in self._values.items():
            if self._matches(pattern, module):
                return value
        # PEFT falls back to the name itself as key, which matters where it is no valid pattern.
        return self._values.get(module, default)

    def _matches(self, pattern: str, module: str) -> bool:
        return self._matcher.match(rf"(.*\.)?({pattern})$", module) is not None


class DottedPatternTable(PatternTable):
    """The same as FourierFT and C3A match: what comes before the end must close with a dot, and
    alternatives in a pattern are not held together."""

    def _matches(self, pattern: str, module: str) -> bool:
        return self._matcher.match(rf".*\.{pattern}$", module) is not None


class Targets:
    """PEFT's target_modules, exclude_modules, layers_to_transform and layers_pattern
    (`peft.tuners.tuners_utils.check_target_module_exists`)."""

    def __init__(
        self,
        *,
        targets: tuple[str, ...] | str,
        excluded: tuple[str, ...] | str | None,
        layers: tuple[int, ...] | None,
        layers_pattern: tuple[str, ...] | str | None,
        matcher: Matcher,
    ) -> None:
        self._targets = targets
        self._excluded = excluded or ()
        self._layers = layers
        self._layers_pattern = (
            (layers_pattern,) if isinstance(layers_pattern, str) else layers_pattern or ()
        )
        self._layers_pattern = tuple(pattern for pattern in self._layers_pattern if pattern)
        self._matcher = matcher
        if isinstance(targets, str) and layers is not None:
            raise InvalidArtifact(
                "adapter_config.json: layers_to_transform needs target_modules to be a list"
            )

    def among(self, modules: Iterable[str]) -> frozenset[str]:
        """Those of `modules` that the config targets."""
        return frozenset(module for module in modules if self._is_target(module))

    def _is_target(self, module: str) -> bool:
        if self._is_in(self._excluded, module):
            return False
        if isinstance(self._targets, str) and self._targets.lower() == ALL_LINEAR:
            # The output head is the linear module outside the numbered layers.
            return _OUTSIDE_LAYERS.match(module) is None
        if not self._is_in(self._targets, module):
            return False
        return not self._layers or self._layer_of(module) in self._layers

    def _is_in(self, names: tuple[str, ...] | str, module: str) -> bool:
        if isinstance(names, str):
            return self._matcher.match(names, module, whole=True) is not None
        return any(module == name or module.endswith(f".{name}") for name in names)

    def _layer_of(self, module: str) -> int | None:
        patterns = [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in self._layers_pattern]
        for pattern in patterns or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
            match = self._matcher.match(pattern, module)
            if match is not None:
                return int(match.group("idx"))
        return None


def _check_plain(pattern: str) -> None:
    """Refuses what makes compiling itself slow or large: module names need none of it."""
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise InvalidArtifact(
            f"adapter_config.json: a pattern is longer than {_MAX_PATTERN_LENGTH} characters"
        )
    if not pattern.isascii() or _CODE_POINT.search(pattern):
        raise InvalidArtifact(f"adapter_config.json: {pattern[:80]!r} is not plain ASCII")
    counts = [int(count) for found in _COUNTED.findall(pattern) for count in found if count]
    if pattern.count("{") != len(_COUNTED.findall(pattern)) or math.prod(counts) > _MAX_REPEATS:
        raise InvalidArtifact(
            f"adapter_config.json: {pattern[:80]!r} repeats more than {_MAX_REPEATS} times"
        )


def _too_slow() -> InvalidArtifact:
    return InvalidArtifact(
        "adapter_config.json: its patterns take too long to match; list the modules by name"
    )
