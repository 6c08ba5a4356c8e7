"""Turns output tokens into text as they come."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_REPLACEMENT = "\ufffd"  # what bytes that are no valid UTF-8 decode to
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a byte of SentencePiece's byte fallback
_MAX_WINDOW = 16  # tokens; a character spans 4 bytes, so at most 4 tokens that have any


class Detokenizer:
    """Decodes tokens of one tokenizer; shared by all answers.

    The text of a whole answer equals
    `tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        backend = tokenizer.backend_tokenizer
        self._decode = backend.decode
        self._id_to_token = backend.id_to_token
        self._special_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )  # fmt: skip
        self._byte_ids: frozenset[int] = frozenset()
        if "ByteFallback" in repr(backend.decoder):
            vocabulary = backend.get_vocab(with_added_tokens=True)
            self._byte_ids = frozenset(
                token_id for token, token_id in vocabulary.items() if _BYTE_TOKEN.fullmatch(token)
            )
        # Some decoders strip the space before the first token of a text: tokens are shown as they
        # read after another one.
        self._anchor_ids: list[int] = backend.encode("x", add_special_tokens=False).ids[-1:]
        self._anchor_text: str = self._decode(self._anchor_ids, skip_special_tokens=False)
        self._token_texts: dict[int, str] = {}
        self._has_text: dict[int, bool] = {}
        self._single_texts: dict[int, str] = {}

    def start(self) -> "TextStream":
        """The state of a new answer."""
        return TextStream(self)

    def token_text(self, token_id: int) -> str:
        """The text of one token in the middle of a text, special tokens by their name. Bytes that
        are no valid UTF-8 by themselves show as U+FFFD; an id without a token is ""."""
        text = self._token_texts.get(token_id)
        if text is None:
            decoded: str = self._decode([*self._anchor_ids, token_id], skip_special_tokens=False)
            text = self._token_texts[token_id] = decoded.removeprefix(self._anchor_text)
        return text

    def has_text(self, token_id: int) -> bool:
        """Whether the token shows in an answer: not a special one, nor an id without a token."""
        known = self._has_text.get(token_id)
        if known is None:
            known = token_id not in self._special_ids and self._id_to_token(token_id) is not None
            self._has_text[token_id] = known
        return known

    def is_byte(self, token_id: int) -> bool:
        return token_id in self._byte_ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of tokens that stand together, special tokens left out."""
        if len(token_ids) == 1:
            return self._decode_single(token_ids)
        text: str = self._decode(token_ids, skip_special_tokens=True)
        return text

    def _decode_single(self, token_ids: list[int]) -> str:
        text = self._single_texts.get(token_ids[0])
        if text is None:
            text = self._single_texts[token_ids[0]] = self._decode(
                token_ids, skip_special_tokens=True
            )
        return text


class TextStream:
    """The text of one answer as its tokens come.

    Decodes a short window of tokens that ends with the newest. The window begins with tokens whose
    text is out already: how a token reads may depend on the one before it. Held back are a last
    character that is not complete yet, and a run of byte tokens that goes on, as its bytes are
    valid or not as a whole.
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._window: list[int] = []
        self._num_shown = 0  # characters of the window's text that are out

    def push(self, token_ids: Iterable[int]) -> str:
        """Takes the next tokens; returns the text that is certain by now."""
        added = [t for t in token_ids if self._detokenizer.has_text(t)]
        if not added:
            return ""
        self._window += added
        if self._detokenizer.is_byte(self._window[-1]):
            return ""
        text = self._detokenizer.decode(self._window)
        num_certain = len(text) - text.endswith(_REPLACEMENT)
        shown = text[self._num_shown : num_certain]
        self._num_shown = max(self._num_shown, num_certain)
        self._shrink(text)
        return shown

    def finish(self) -> str:
        """The text that was held back, as no more tokens come."""
        text = self._detokenizer.decode(self._window) if self._window else ""
        held = text[self._num_shown :]
        self._window, self._num_shown = [], 0
        return held

    def _shrink(self, text: str) -> None:
        """Drops tokens from the front of the window that cannot change how later ones read."""
        if self._num_shown == len(text):
            self._keep_context()
        elif len(self._window) > _MAX_WINDOW:
            # A text of broken characters never ends with a whole one. Cut it where the halves read
            # the same apart as together.
            tail = self._window[-_MAX_WINDOW // 2 :]
            head_text = self._detokenizer.decode(self._window[: -_MAX_WINDOW // 2])
            tail_text = self._detokenizer.decode(tail)
            if head_text + tail_text == text and self._num_shown >= len(head_text):
                self._window = tail
                self._num_shown -= len(head_text)

    def _keep_context(self) -> None:
        """Keeps the last tokens that have any text by themselves."""
        for start in range(len(self._window) - 1, -1, -1):
            context = self._window[start:]
            text = self._detokenizer.decode(context)
            if text:
                self._window, self._num_shown = context, len(text)
                return
