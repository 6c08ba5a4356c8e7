import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["journal", "service"])
def test_the_journal_needs_no_torch(module: str) -> None:
    script = (
        f"import sys; sys.path[:] = {sys.path!r}; import graftwork_trainer.journal.{module}; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
