"""Times one request and tells the metrics."""

import time

from graftwork_server.metrics import Metrics
from graftwork_server.request import FinishReason


class RequestTimer:
    """From the arrival of a request; `begin` once its adapter and prompt are known."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._arrival = time.monotonic()
        self._adapter = ""
        self._num_prompt_tokens = 0

    def begin(self, adapter: str, num_prompt_tokens: int) -> None:
        self._adapter = adapter
        self._num_prompt_tokens = num_prompt_tokens

    def token(self, previous: float | None, now: float) -> None:
        """An answer got a token at `now`, of the monotonic clock, and one at `previous` before."""
        if previous is None:
            self._metrics.observe_first_token(self._adapter, now - self._arrival)
        else:
            self._metrics.observe_inter_token(now - previous)

    def finished(self, reason: FinishReason, num_tokens: int) -> None:
        self._metrics.observe_finished(
            self._adapter,
            reason,
            prompt_tokens=self._num_prompt_tokens,
            generation_tokens=num_tokens,
            latency_s=time.monotonic() - self._arrival,
        )
