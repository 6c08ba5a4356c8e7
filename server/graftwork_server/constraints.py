"""Constrains output to a JSON schema, a regular expression or a choice, with llguidance."""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

import llguidance.hf
import numpy as np
from graftwork.status import InvalidFieldError
from llguidance import LLMatcher, LLParserLimits

from graftwork_server.request import Choice, ConstraintFailedError, Grammar, JsonSchema, Regex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A sequence's grammar is stepped on the engine's thread. These bound how long a step can take
# (about 14,000 units of step fuel, or 50,000 of initial fuel, per millisecond); a grammar beyond
# them is refused when compiled, or fails its own sequence.
_INITIAL_LEXER_FUEL = 500_000
_STEP_LEXER_FUEL = 100_000
_STEP_MAX_ITEMS = 20_000
_MAX_LEXER_STATES = 50_000  # 1 to 2 kB each

# Whitespace without bound lets a small model write blanks until it runs out of tokens.
_JSON_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"


class ConstraintCompiler:
    """Compiles grammars for one tokenizer. Safe to call from any thread.

    Compiling takes from a millisecond to a second, so call it off the event loop and off the
    engine's thread. The latest grammars are kept compiled.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        eos_token_ids: Iterable[int],
        vocab_size: int,
        max_cached: int = 64,
    ) -> None:
        """`vocab_size` is the number of logits; ids from the tokenizer's size on are never allowed.

        `eos_token_ids` are allowed where the grammar may end; without any no grammar compiles.
        """
        end_tokens = sorted(set(eos_token_ids))
        self._can_end = bool(end_tokens)
        self._tokenizer = llguidance.hf.from_tokenizer(
            tokenizer,
            n_vocab=max(vocab_size, len(tokenizer)),
            eos_token=end_tokens or [0],  # llguidance wants one
        )
        self._num_words = (vocab_size + 31) // 32
        self._max_cached = max_cached
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def compile(self, grammar: Grammar) -> "GrammarConstraint":
        """The constraint of a new sequence.

        Raises InvalidFieldError naming `constraint.json_schema`, `constraint.regex` or
        `constraint.choice` where the grammar is broken, not supported, too large, or matches
        nothing, or where the base has no end token.
        """
        if not self._can_end:
            _refuse(grammar, "cannot be met: the base model has no end token to end an answer with")
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is not None:
                self._compiled.move_to_end(grammar)
                return GrammarConstraint(matcher.deep_copy(), self._tokenizer.vocab_size)
        matcher = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = matcher
            while len(self._compiled) > self._max_cached:
                self._compiled.popitem(last=False)
            return GrammarConstraint(matcher.deep_copy(), self._tokenizer.vocab_size)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        limits = LLParserLimits(
            initial_lexer_fuel=_INITIAL_LEXER_FUEL,
            step_lexer_fuel=_STEP_LEXER_FUEL,
            step_max_items=_STEP_MAX_ITEMS,
            max_lexer_states=_MAX_LEXER_STATES,
            verbose_errors=False,
        )
        matcher = LLMatcher(self._tokenizer, _source(grammar), log_level=0, limits=limits)
        if matcher.is_error():
            _refuse(grammar, _readable(matcher.get_error()))
        # The first mask builds most of what later ones need, and shows what is too costly or empty.
        matcher.compute_bitmask()
        if matcher.is_error():
            _refuse(grammar, _readable(matcher.get_error()))
        return matcher


class GrammarConstraint:
    """The state of a compiled grammar for one sequence; implements request.Constraint."""

    def __init__(self, matcher: LLMatcher, num_tokens: int) -> None:
        self._matcher = matcher
        self._words = np.zeros((num_tokens + 31) // 32, dtype=np.int32)

    def fill_bitmask(self, bitmask: memoryview) -> None:
        """Writes the allowed next tokens into int32 words, one bit each, lowest first."""
        words = self._words
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        target = np.frombuffer(bitmask, dtype=np.int32)
        target[:] = words[: len(target)]

    def accept(self, token_id: int) -> bool:
        """Advances over a sampled token; True when nothing may follow it."""
        self._matcher.consume_token(token_id)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintFailedError(
                f"the constraint failed: {_readable(self._matcher.get_error())}"
            )


def _source(grammar: Grammar) -> str:
    """What llguidance compiles."""
    match grammar:
        case JsonSchema():
            source = _json_source(grammar)
        case Regex(pattern):
            source = str(LLMatcher.grammar_from_regex(pattern))
        case Choice(values):
            pattern = "|".join(re.escape(value) for value in values)
            source = str(LLMatcher.grammar_from_regex(pattern))
    return source


def _json_source(grammar: JsonSchema) -> str:
    # Parsed here and not in llguidance, which pastes the text into a larger document.
    try:
        schema = json.loads(grammar.text, parse_constant=_refuse_constant)
    except RecursionError:
        _refuse(grammar, "is nested too deeply")
    except ValueError as error:
        _refuse(grammar, f"is not valid JSON: {error}")
    if not isinstance(schema, dict):
        _refuse(grammar, f"must be a JSON object, and is {grammar.text.strip()[:40]!r}")
    try:
        source = LLMatcher.grammar_from_json_schema(
            schema,
            overrides={
                "whitespace_flexible": True,
                "whitespace_pattern": _JSON_WHITESPACE,
                "lenient": False,  # a keyword that is not supported is an error, never left out
            },
        )
    except ValueError as error:
        # A number past 64 bits or a lone surrogate, which must not get into a message as it is.
        _refuse(grammar, ascii(str(error)))
    return source


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _refuse(grammar: Grammar, message: str) -> NoReturn:
    field = {JsonSchema: "json_schema", Regex: "regex", Choice: "choice"}[type(grammar)]
    raise InvalidFieldError(f"constraint.{field}", message)


def _readable(error: str) -> str:
    """The line of llguidance's message that says what is wrong."""
    if error.startswith("NoExtension"):
        return "no output can match it"
    for line in error.splitlines():
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    return error.strip().splitlines()[0] if error.strip() else "no reason given"
