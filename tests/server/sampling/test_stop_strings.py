import pytest
from graftwork_server.stop_strings import StopStrings
from hypothesis import given
from hypothesis import strategies as st

LETTERS = "ab"


def plain_search(text, stops):
    """The first stop string to be complete, as one reads the text letter by letter."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3),
    chunks=st.lists(st.text(LETTERS, max_size=5), max_size=10),
)
def test_equals_the_search_over_the_whole_text(stops, chunks):
    expected_text, expected_stop = plain_search("".join(chunks), stops)
    watcher = StopStrings(stops)
    shown = ""
    for chunk in chunks:
        part, stop = watcher.push(chunk)
        shown += part
        if stop is not None:
            assert (shown, stop) == (expected_text, expected_stop)
            assert watcher.finish() == ""
            return
    assert expected_stop is None
    assert shown + watcher.finish() == expected_text


@given(
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=3),
    text=st.text(LETTERS, max_size=12),
)
def test_withholds_no_more_than_needed(stops, text):
    watcher = StopStrings(stops)
    shown, stop = watcher.push(text)
    if stop is None:
        held = text[len(shown) :]
        assert held == "" or any(s.startswith(held) and s != held for s in stops)


def test_holds_back_what_may_become_a_stop_string():
    watcher = StopStrings(["\n\nUser:"])
    assert watcher.push("Hello\n\nUs") == ("Hello", None)
    assert watcher.push("ual\n") == ("\n\nUsual", None)
    assert watcher.push("\nUser: hi") == ("", "\n\nUser:")


def test_empty_stop_strings_are_refused():
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])
