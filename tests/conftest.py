"""Settings of every test."""

from hypothesis import settings

# A test that is slow on a busy machine is not wrong: time is measured in benchmarks/.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
