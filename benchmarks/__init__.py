"""What is measured, and against whom."""

import os

# As `graftwork serve` has it, for engines that run in a benchmark's own process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
