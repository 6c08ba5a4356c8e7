"""How many tokens a step may still compute, for users and for what works in the background."""

from graftwork_server.limits import SchedulerConfig
from graftwork_server.running import Tracked


class StepBudget:
    """Of one step. Sequences with a negative priority are the background: beside others they get a
    few tokens together, so that they go on without slowing what users wait for."""

    def __init__(self, config: SchedulerConfig, *, beside_others: bool) -> None:
        """`beside_others`: whether sequences run, or could, that are not the background."""
        self._tokens = config.max_tokens_per_step
        self._prompt_tokens = config.max_prefill_tokens_while_decoding
        self._background = config.max_background_tokens if beside_others else None

    @property
    def left(self) -> int:
        """Tokens that there are for users."""
        return self._tokens

    def left_for(self, tracked: Tracked) -> int:
        """Tokens that a sequence may have."""
        if self._background is None or not tracked.is_background:
            return self._tokens
        return min(self._tokens, self._background)

    def take(self, tracked: Tracked) -> int:
        """Gives a sequence its next tokens, as many as it may have; returns their number."""
        number = min(tracked.num_uncomputed, self.left_for(tracked))
        self.spend(tracked, number)
        return number

    def spend(self, tracked: Tracked, number: int) -> None:
        """Counts tokens that a sequence got: no more than left_for it."""
        self._tokens -= number
        if tracked.is_background and self._background is not None:
            self._background -= number

    def cut_prompts(self) -> None:
        """What is left goes to prompts, in a step that decodes as well."""
        if self._prompt_tokens is not None:
            self._tokens = min(self._tokens, self._prompt_tokens)
