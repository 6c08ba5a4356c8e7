"""Finds stop strings in text that arrives in parts."""

from collections.abc import Sequence


class StopStrings:
    """Watches the text of one answer for the first stop string to be complete.

    The answer ends before that string. Of several that are complete at the same character the
    longest counts, as it starts first. What is found does not depend on how the text is cut up.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty strings; there may be none."""
        if not all(stops):
            raise ValueError("a stop string is empty")
        self._stops = tuple(stops)
        self._held = ""  # the longest end of the text so far that may become a stop string

    def push(self, text: str) -> tuple[str, str | None]:
        """Takes the next part of the text; returns what may be shown, and the stop string if one is
        complete. After that nothing may be pushed, and `finish` returns nothing."""
        if not self._stops:
            return text, None
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops
                 if (start := text.find(stop)) >= 0]  # fmt: skip
        if found:
            _, start, stop = min(found)
            self._held = ""
            return text[:start], stop
        num_held = max(_overlap(text, stop) for stop in self._stops)
        shown = len(text) - num_held
        self._held = text[shown:]
        return text[:shown], None

    def finish(self) -> str:
        """The text still held back, at the end of an answer that no stop string ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, shorter than `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
