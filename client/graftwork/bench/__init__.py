"""Makes traffic against a running server and tells how it was served.

    load = Load(ClosedLoop(16), num_requests=500)
    requests = draw_requests(
        Zipf(1.0), names, SyntheticPrompts(Uniform(32, 256), vocabulary), Fixed(64), seed=0
    )
    report = summarize(await run_load(client, load, requests))

What is drawn, and when it is sent, depends on the seed alone, never on the server.
"""

from graftwork.bench.arrivals import AllAtOnce, Arrivals, ClosedLoop, Poisson
from graftwork.bench.lengths import Fixed, Lengths, Normal, Uniform, parse_lengths
from graftwork.bench.popularity import Even, OneHot, Popularity, Zipf
from graftwork.bench.prompts import GivenPrompts, Prompts, SyntheticPrompts, read_prompts
from graftwork.bench.report import Report, summarize
from graftwork.bench.runner import Load, Outcome, Run, run_load
from graftwork.bench.statistics import Distribution, jain_index
from graftwork.bench.traffic import PlannedRequest, draw_requests

__all__ = [
    "AllAtOnce",
    "Arrivals",
    "ClosedLoop",
    "Distribution",
    "Even",
    "Fixed",
    "GivenPrompts",
    "Lengths",
    "Load",
    "Normal",
    "OneHot",
    "Outcome",
    "PlannedRequest",
    "Poisson",
    "Popularity",
    "Prompts",
    "Report",
    "Run",
    "SyntheticPrompts",
    "Uniform",
    "Zipf",
    "draw_requests",
    "jain_index",
    "parse_lengths",
    "read_prompts",
    "run_load",
    "summarize",
]
