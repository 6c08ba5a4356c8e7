import pytest
from graftwork_trainer.datasets.examples import parse
from graftwork_trainer.datasets.prompts import TokenIds
from graftwork_trainer.datasets.scrub import scrub_example, scrub_text
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.datasets.feedback import example

# Put together here, so that no scanner takes this file for a leak.
GITHUB = "ghp_" + "1234567890abcdefghij" + "KLMNOPQRSTUVWXYZ"
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
JWT = "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0" + ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r"
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabc\n-----END RSA PRIVATE KEY-----"
SENSITIVE = [
    ("ann.smith+work@mail.example.co.uk", "[EMAIL]"),
    ("+44 7911 123456", "[PHONE]"),
    ("(650) 253-0000", "[PHONE]"),
    ("07732584351", "[PHONE]"),
    ("4111 1111 1111 1111", "[CARD]"),
    ("GB82 WEST 1234 5698 7654 32", "[IBAN]"),
    ("DE89370400440532013000", "[IBAN]"),
    ("536-90-4399", "[SSN]"),
    ("8.8.8.8", "[IP]"),
    ("2001:4860:4860::8888", "[IP]"),
    (GITHUB, "[SECRET]"),
    (AWS, "[SECRET]"),
    (JWT, "[SECRET]"),
    (KEY, "[SECRET]"),
]


@pytest.mark.parametrize(("sensitive", "placeholder"), SENSITIVE)
def test_sensitive_data_becomes_a_placeholder(sensitive, placeholder):
    assert scrub_text(f"It is {sensitive}, I think.") == f"It is {placeholder}, I think."
    assert scrub_text(sensitive) == placeholder


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ('password = "hunter two"', 'password = "[SECRET]"'),
        ("my password: hunter2", "my password: [SECRET]"),
        ("postgres://ann:pa55@db/main", "postgres[SECRET]db/main"),
    ],
)
def test_passwords_are_found_by_what_stands_before_them(text, scrubbed):
    assert scrub_text(text) == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "The secret: be kind.",
        "It is 10:30, the 2024-01-02, and pi is 3.14159265.",
        "Order 12345678 costs 4,999.00 EUR",
        "4111 1111 1111 1112",
        "127.0.0.1 and ::1 and 10.0.0.1",
        "x = y[0]; a::b; @property",
        "[EMAIL] or [PHONE]",
        "sum(range(100)) == 4950",
    ],
)
def test_what_only_looks_alike_stays(text):
    assert scrub_text(text) == text


PIECE = st.one_of(
    st.sampled_from([text for text, _ in SENSITIVE]),
    st.sampled_from(["[EMAIL]", "[SECRET]", "password: ", "token='", "'", "@", ".", "-", "://a:"]),
    st.from_regex(r"[0-9+ ().-]{1,15}", fullmatch=True),
    st.text(max_size=8),
)


@given(st.lists(PIECE, max_size=8).map("".join))
def test_scrubbing_twice_is_scrubbing_once(text):
    scrubbed = scrub_text(text)
    assert scrub_text(scrubbed) == scrubbed


@given(st.sampled_from(SENSITIVE), st.text("abc ,\n", max_size=20), st.text("abc ,\n", max_size=20))
def test_nothing_sensitive_is_left(item, before, after):
    assert item[0] not in scrub_text(f"{before} {item[0]} {after}")


def test_every_text_of_an_example_is_scrubbed():
    mail = "ann@example.org"
    value = example(1, format="preference", chosen=mail, rejected="", author=mail).to_json()
    value["prompt"] = {
        "messages": [{"role": "user", "content": mail}],
        "documents": [{"title": mail, "text": mail}],
    }
    scrubbed = scrub_example(parse(value)).to_json()
    assert scrubbed["prompt"] == {
        "messages": [{"role": "user", "content": "[EMAIL]"}],
        "documents": [{"title": "[EMAIL]", "text": "[EMAIL]"}],
    }
    assert (scrubbed["chosen"], scrubbed["rejected"]) == ("[EMAIL]", "")
    assert scrubbed["author"] == mail  # an opaque id, by which examples stay together


def test_token_ids_cannot_be_scrubbed():
    value = example(1).to_json() | {"prompt": TokenIds((1, 2)).to_json()}
    assert scrub_example(parse(value)) is None
