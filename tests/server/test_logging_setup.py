"""Log lines, as the process that configured them writes them."""

import json
import subprocess
import sys

PROGRAM = """
import logging
from graftwork_server.logging_setup import configure_logging
from graftwork_server.settings import LogSettings

configure_logging(LogSettings(level={level!r}, format={format!r}))
log = logging.getLogger("graftwork_server.engine")
log.debug("quiet")
log.info("step %d", 3)
logging.getLogger("some.library").info("chatter")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("incident 42")
"""


def lines(level, format_):
    program = PROGRAM.format(level=level, format=format_)
    path = ":".join(sys.path)
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == ""
    return result.stderr.splitlines()


def test_json_is_one_object_per_record():
    first, second = [json.loads(line) for line in lines("info", "json")]
    assert (first["level"], first["logger"]) == ("info", "graftwork_server.engine")
    assert first["message"] == "step 3"
    assert first["time"].endswith("+00:00")
    assert "ZeroDivisionError" in second["exception"]


def test_text_is_for_people_and_levels_apply():
    found = lines("error", "text")
    assert "ERROR" in found[0]
    assert "incident 42" in found[0]
    assert not any("step 3" in line for line in found)
