"""The page of methods says what the code says."""

import pytest
from graftwork_adapters.methods import find_methods
from graftwork_server.kernels.build import kernels_loaded, load_kernels

from benchmarks.method_adapters import METHODS
from docs.adapter_methods import PAGE, page
from tests.support.tiny_serving import one_torch_thread

__all__ = ["one_torch_thread"]


def test_the_page_is_fresh() -> None:
    load_kernels()
    if not kernels_loaded():
        pytest.skip("sizes are those of the kernels' layout, and no compiler is here to build them")
    assert PAGE.read_text(encoding="utf-8") == page(), "stale: run make docs-methods"


def test_every_method_has_a_row() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in METHODS if f"\n| {name} (`" not in text] == []
    assert [name for name in find_methods() if f"(`{name}`)" not in text] == []
