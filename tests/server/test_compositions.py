from graftwork_adapters.composition import Component
from graftwork_server import compositions
from graftwork_server.compositions import Compositions


def components(weight: float) -> tuple[Component, ...]:
    return (Component("a@1", "LORA", "sha256:a", weight),)


def test_a_composition_outlives_the_request_that_wanted_it(monkeypatch):
    monkeypatch.setattr(compositions, "_MAX_IDLE", 1)
    known = Compositions()
    with known.holding(components(2.0)) as first, known.holding(components(2.0)) as same:
        assert first == same
        assert known.find(first) == components(2.0)
    assert known.find(first) == components(2.0)
    with known.holding(components(3.0)) as second:
        assert known.find(first) == components(2.0)
    assert known.find(second) == components(3.0)
    assert known.find(first) is None


def test_a_held_composition_is_not_forgotten(monkeypatch):
    monkeypatch.setattr(compositions, "_MAX_IDLE", 0)
    known = Compositions()
    with known.holding(components(2.0)) as digest:
        with known.holding(components(2.0)):
            pass
        assert known.find(digest) == components(2.0)
    assert known.find(digest) is None


def test_the_digest_of_a_version_is_none():
    assert Compositions().find("sha256:a") is None
