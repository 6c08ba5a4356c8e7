"""Guesses what a sequence says next from what it said before: prompt look-up. No torch here.

Saxena, "Prompt Lookup Decoding" (2023): what followed the last tokens where they stood before.
"""

from graftwork_server.request import Sequence

# Tokens that are looked up together, the longer first: fewer than two stand everywhere by chance.
NGRAM_SIZES = (3, 2)


class PromptLookup:
    """Drafts for one sequence, out of its own prompt and output."""

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence
        self._length = 1  # how many tokens are worth guessing, by how the last guesses did
        self._history: list[int] = []  # the sequence's tokens as far as they were read
        self._next_of: dict[tuple[int, ...], int] = {}  # where what follows an n-gram last stood

    def propose(self, room: int) -> tuple[int, ...]:
        """At most `room` tokens; none is a stop token."""
        self._catch_up()
        place = self._find()
        if place is None:
            return ()
        # Where the match reaches into the end itself, the draft goes on repeating it.
        tokens = self._history[place:]
        draft: list[int] = []
        for index in range(min(room, self._length, self._sequence.prompt_lookup_tokens)):
            token_id = tokens[index % len(tokens)]
            if token_id in self._sequence.stop_token_ids:
                break
            draft.append(token_id)
        return tuple(draft)

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """Takes in how many tokens of a draft were right, all up to the first wrong one."""
        if num_drafted == 0:
            return
        if num_accepted == num_drafted:
            self._length = max(self._length, 2 * num_drafted)
        else:
            self._length = max(1, num_accepted)

    def _catch_up(self) -> None:
        """Reads the new tokens, and notes each as what follows the ones before it."""
        history = self._history
        for token_id in self._sequence.token_ids(len(history), self._sequence.num_tokens):
            place = len(history)
            for size in NGRAM_SIZES:
                if size <= place:
                    self._next_of[tuple(history[place - size :])] = place
            history.append(token_id)

    def _find(self) -> int | None:
        """Where what followed the last tokens stands."""
        for size in NGRAM_SIZES:
            place = self._next_of.get(tuple(self._history[-size:]))
            if place is not None:
                return place
        return None
