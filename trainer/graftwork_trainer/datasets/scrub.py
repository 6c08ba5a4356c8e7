"""Replaces secrets and personal data by placeholders such as [EMAIL].

    [SECRET]  keys and tokens that detect-secrets knows, private keys, "password: ..."
    [EMAIL]
    [PHONE]   numbers that phonenumbers finds valid: international ones, and national ones of
              PHONE_REGIONS
    [CARD]    13 to 19 digits with a right check digit (ISO/IEC 7812)
    [IBAN]    with the right length and check digits (ISO 13616)
    [SSN]     US social security numbers written with dashes
    [IP]      public addresses, IPv4 and IPv6

Names and postal addresses stay: to find them takes a model. The same text always gives the same
result, and scrubbing what is scrubbed changes nothing.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import NamedTuple, TypeAlias

import phonenumbers
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import BasePlugin, RegexBasedDetector
from detect_secrets.plugins.keyword import (
    CONFIG_DENYLIST_REGEX_TO_GROUP,
    QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP,
)
from stdnum import iban, luhn
from stdnum.us import ssn

from graftwork_trainer.datasets.examples import Example
from graftwork_trainer.datasets.prompts import Conversation, Document, Message, Prompt, Text

PHONE_REGIONS = ("US", "GB", "IN")

_Span: TypeAlias = tuple[int, int]


class _Detector(NamedTuple):
    placeholder: str
    find: Callable[[str], Iterator[_Span]]


def scrub_text(text: str) -> str:
    """The text with placeholders in it."""
    # What a replacement leaves may match in turn; each round has less left to replace.
    while (scrubbed := _scrub_once(text)) != text:
        text = scrubbed
    return text


def scrub_example(example: Example) -> Example | None:
    """The example with all its texts scrubbed; None where its prompt is token ids, which stand for
    text that cannot be changed without their tokenizer."""
    prompt = _scrub_prompt(example.prompt)
    if prompt is None:
        return None
    names = {field.name for field in fields(example)} & {"completion", "chosen", "rejected"}
    answers = {name: scrub_text(getattr(example, name)) for name in names}
    return replace(example, prompt=prompt, **answers)  # type: ignore[arg-type]


def _scrub_prompt(prompt: Prompt) -> Prompt | None:
    if isinstance(prompt, Text):
        return Text(scrub_text(prompt.text))
    if isinstance(prompt, Conversation):
        return Conversation(
            tuple(Message(m.role, scrub_text(m.content)) for m in prompt.messages),
            tuple(Document(scrub_text(d.title), scrub_text(d.text)) for d in prompt.documents),
        )
    return None


def _scrub_once(text: str) -> str:
    # Without any of these no detector finds anything.
    if not _SUSPICIOUS.search(text):
        return text
    pieces = _PLACEHOLDER.split(text)
    pieces[::2] = [_scrub_piece(piece) for piece in pieces[::2]]
    return "".join(pieces)


def _scrub_piece(piece: str) -> str:
    """Replaces what is found in a text without placeholders; what overlaps becomes one, of the
    kind that is named first in `_DETECTORS`."""
    found = sorted(
        (start, end, rank)
        for rank, detector in enumerate(_DETECTORS)
        for start, end in detector.find(piece)
        if start < end
    )
    merged: list[tuple[int, int, int]] = []
    for start, end, rank in found:
        if merged and start < merged[-1][1]:
            first, last, kind = merged[-1]
            merged[-1] = (first, max(last, end), min(kind, rank))
        else:
            merged.append((start, end, rank))
    for start, end, rank in reversed(merged):
        piece = piece[:start] + _DETECTORS[rank].placeholder + piece[end:]
    return piece


def _secret_patterns() -> Iterator[re.Pattern[str]]:
    """The whole of what detect-secrets matches: its own results leave out parts of some tokens."""
    own = {"IPPublicDetector", "PrivateKeyDetector", "JwtTokenDetector"}
    detectors: Mapping[str, type[BasePlugin]] = get_mapping_from_secret_type_to_class()
    for detector in detectors.values():
        plugin = detector()
        if isinstance(plugin, RegexBasedDetector) and detector.__name__ not in own:
            yield from plugin.denylist


_SECRETS = (
    *_secret_patterns(),
    # detect-secrets finds a private key's first line only, and a JWT without its signature.
    re.compile(
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----"
        r".*?(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|\Z)",
        re.DOTALL,
    ),
    re.compile(r"\beyJ[\w=-]+\.[\w=-]+(?:\.[\w.+/=-]+)?"),
    re.compile(r"\bsk-[\w-]{20,}"),
)


def _secrets(text: str) -> Iterator[_Span]:
    for pattern in _SECRETS:
        for match in pattern.finditer(text):
            yield match.span()
    for pattern, group in QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP.items():
        for match in pattern.finditer(text):
            yield match.span(group)
    for pattern, group in CONFIG_DENYLIST_REGEX_TO_GROUP.items():
        for match in pattern.finditer(text):
            # Without quotes it may be prose, as in "the secret: patience".
            if any(character.isdigit() for character in match.group(group)):
                yield match.span(group)


_EMAIL = re.compile(r"[\w.+%-]+@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,}")
_CARD = re.compile(r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_SSN = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_IP = re.compile(r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+)(?![\w:])")
# Other global addresses are not in use; "a::b" is rather a name in C++.
_ALLOCATED = ipaddress.ip_network("2000::/3")
_SEVEN_DIGITS = re.compile(r"(?:\d[^\w\n]{0,4}){6}\d")


def _checked(
    pattern: re.Pattern[str], valid: Callable[[str], bool]
) -> Callable[[str], Iterator[_Span]]:
    def find(text: str) -> Iterator[_Span]:
        return (match.span() for match in pattern.finditer(text) if valid(match.group()))

    return find


def _is_card(digits: str) -> bool:
    return luhn.is_valid(re.sub(r"[ -]", "", digits))


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and (parsed.version == 4 or parsed in _ALLOCATED)


def _phones(text: str) -> Iterator[_Span]:
    if not _SEVEN_DIGITS.search(text):
        return
    for region in PHONE_REGIONS:
        for match in phonenumbers.PhoneNumberMatcher(text, region):
            yield match.start, match.end


_DETECTORS = (
    _Detector("[SECRET]", _secrets),
    _Detector("[EMAIL]", _checked(_EMAIL, lambda _: True)),
    _Detector("[IBAN]", _checked(_IBAN, iban.is_valid)),
    _Detector("[CARD]", _checked(_CARD, _is_card)),
    _Detector("[SSN]", _checked(_SSN, ssn.is_valid)),
    _Detector("[IP]", _checked(_IP, _is_public)),
    _Detector("[PHONE]", _phones),
)
_PLACEHOLDER = re.compile(
    "(" + "|".join(re.escape(detector.placeholder) for detector in _DETECTORS) + ")"
)
_SUSPICIOUS = re.compile(r"[\d@:=_]|--|sk-|\beyJ")
