"""`graftwork serve`, short of a server."""

import gc

from click.testing import CliRunner
from graftwork_server.cli import serve
from graftwork_server.serve import spare_long_collections


def test_a_start_that_fails_leaves_the_collector_on() -> None:
    result = CliRunner().invoke(serve, ["--device", "cuda", "--model", "nowhere"])
    assert result.exit_code != 0
    assert gc.isenabled()


def test_a_server_that_is_up_collects_what_it_makes() -> None:
    gc.disable()
    try:
        spare_long_collections()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.enable()
