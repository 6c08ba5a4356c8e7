"""Which rows of the step in progress belong to which slot, for the modules inside the base."""

from torch import Tensor

from graftwork_server.kernels.segments import Segments

NO_SEGMENTS = Segments.from_lengths([])


class StepSegments:
    """The segments of the step in progress, shared by all modules that adapters change."""

    def __init__(self) -> None:
        self.tokens = NO_SEGMENTS
        self.logit_rows = NO_SEGMENTS
        self.is_stackable = (
            False  # whether the stacks of layers do all that its adapters do in them
        )
        self.head_input: Tensor | None = None  # (..., hidden_size): final states of the logit rows
