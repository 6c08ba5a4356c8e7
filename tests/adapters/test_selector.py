import pytest
from graftwork.status import InvalidFieldError
from graftwork_adapters.selector import BASE, Selector, parse_selector
from hypothesis import given
from hypothesis import strategies as st


def test_the_three_forms() -> None:
    assert parse_selector("") is BASE
    assert BASE.is_base
    assert parse_selector("a.b_c-1") == Selector("a.b_c-1")
    assert parse_selector("a@12") == Selector("a", 12)


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "-a",
        "a b",
        "a/b",
        "é",
        "a" * 64,
        "a\n",
        "@1",
        "a@",
        "a@0",
        "a@01",
        "a@-1",
        "a@1@2",
        "a@1\n",
        "a@x",
        "a@" + "9" * 19,
        "../a",
        "a@latest",
        "a@1٢",
    ],
)
def test_what_is_no_selector(text: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        parse_selector(text, field="where")
    assert caught.value.field == "where"


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True), st.integers(1, 10**18 - 1))
def test_writing_reverses_reading(name: str, version: int) -> None:
    for selector in (Selector(name), Selector(name, version)):
        assert parse_selector(str(selector)) == selector


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        selector = parse_selector(text)
    except InvalidFieldError:
        return
    assert str(selector) == text
