"""How adapters are trained: one function per recipe, from a `run.TrainingRun` to a folder that can
be registered. TRL does what TRL has."""
