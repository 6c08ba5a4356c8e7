import subprocess
import sys

import pytest

MODULES = (
    "plan",
    "request",
    "blocks",
    "slots",
    "fairness",
    "demand",
    "limits",
    "events",
    "running",
    "scheduler",
)


@pytest.mark.parametrize("module", MODULES)
def test_module_needs_no_torch(module):
    script = (
        f"import sys; sys.path[:] = {sys.path!r}; import graftwork_server.{module}; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
