"""An engine over a tiny model, without queues or a network: rows of one batch, each with its own
adapter folder, computed by the server's Runner in chunks of any size."""

import copy
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import torch
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import lower
from graftwork_server import attention
from graftwork_server.attention import allocate_kv_caches
from graftwork_server.base_model import prepare_base_model
from graftwork_server.device_adapters import DeviceAdapters
from graftwork_server.drafting import PromptLookup
from graftwork_server.events import ClassScoresEvent
from graftwork_server.kernels.build import load_kernels
from graftwork_server.limits import SchedulerConfig
from graftwork_server.packed_adapter import pack_adapter
from graftwork_server.plan import ScheduledSequence, StepPlan, StepResult, TokenLogprob
from graftwork_server.request import SamplingParams, Sequence
from graftwork_server.runner import Runner
from graftwork_server.sampler import Sampler
from graftwork_server.scheduler import Scheduler
from torch import Tensor

from tests.server.sampling.tiny_tokenizers import byte_level

BLOCK_SIZE = 4
NUM_BLOCKS = 384


class RecordingRunner(Runner):
    """Keeps the logits of the last step: (num_logit_rows, vocab_size) float32."""

    last_logits: Tensor

    def _read_out(self, plan, sequences, logits) -> StepResult:
        self.last_logits = logits.clone()
        return super()._read_out(plan, sequences, logits)


class KnownAnswer(PromptLookup):
    """Drafts from an answer told beforehand."""

    def __init__(self, sequence: Sequence, answer: list[int]) -> None:
        super().__init__(sequence)
        self._answer = answer

    def propose(self, room: int) -> tuple[int, ...]:
        done = self._sequence.num_tokens - len(self._sequence.prompt_token_ids)
        return tuple(self._answer[done:][: max(room, 0)])


@dataclass(frozen=True, slots=True)
class Served:
    """What became of the rows that the scheduler ran."""

    sequences: list[Sequence]  # finished
    logits: list[Tensor]  # of each sequence's sampled tokens: (num_tokens, vocab_size) float32
    scheduler: Scheduler


class TinyEngine:
    """Serves a copy of `model`, so that the model itself can still be given to PEFT."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        quantization: str = "none",
        max_slots: int = 40,
        device: str = "cpu",
    ) -> None:
        load_kernels()
        attention.register()
        self.max_slots = max_slots
        self.base = prepare_base_model(
            copy.deepcopy(model),
            byte_level(),
            name="tiny",
            quantization=quantization,
            device=torch.device(device),
        )
        self.adapters = DeviceAdapters(self.base, max_slots=max_slots)
        caches = allocate_kv_caches(
            [(layer.num_kv_heads, layer.head_dim) for layer in self.base.layers],
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            dtype=self.base.dtype,
            device=self.base.device,
        )
        sampler = Sampler(self.base.vocab_size, self.base.device)
        self.runner = RecordingRunner(
            self.base, self.adapters, sampler, caches, block_size=BLOCK_SIZE
        )

    def lower(self, folder: Path) -> LoweredAdapter:
        return lower(read_artifact(folder, AdapterLimits()), self.base, max_rank=512)

    def run_logits(
        self, folders: Seq[Path | None], prompts: Seq[list[int]], chunk_size: int = 1000
    ) -> list[Tensor]:
        """The logits of every real token of each prompt: (num_tokens, vocab_size) float32 each.

        All rows advance together, `chunk_size` tokens (virtual ones too) a step; None is the base.
        """
        slots, num_virtual = self._place(folders)
        sequences = {
            row: Sequence(
                row,
                (*(-1 - i for i in range(num_virtual[row])), *prompt),
                SamplingParams(seed=0, prompt_logprobs=0),
                max_tokens=0,
            )
            for row, prompt in enumerate(prompts)
        }
        blocks = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(0)).tolist()
        tables: list[tuple[int, ...]] = []
        for sequence in sequences.values():
            count = -(-sequence.num_tokens // BLOCK_SIZE)
            tables.append(tuple(blocks[:count]))
            blocks = blocks[count:]
        collected: list[list[Tensor]] = [[] for _ in prompts]
        done = 0
        while plan := _next_plan(sequences, slots, tables, done, chunk_size):
            self.runner.execute(plan, sequences)
            row = 0
            for scheduled in plan.sequences:
                rows = self.runner.last_logits[row : row + scheduled.num_tokens]
                row += scheduled.num_tokens
                is_real = torch.tensor(
                    [token_id >= 0 for token_id in scheduled.token_ids], device=rows.device
                )
                collected[scheduled.sequence_id].append(rows[is_real])
            done += chunk_size
        self._clear(slots)
        return [torch.cat(parts) for parts in collected]

    def prompt_logprobs(
        self, folder: Path | None, prompt: list[int], chunk_size: int = 1000
    ) -> list[TokenLogprob]:
        """What a Score of the prompt reports."""
        slots, (num_virtual,) = self._place([folder])
        virtual = (-1 - i for i in range(num_virtual))
        sampling = SamplingParams(seed=0, prompt_logprobs=0)
        sequences = {0: Sequence(0, (*virtual, *prompt), sampling, max_tokens=0)}
        tables = [tuple(range(-(-sequences[0].num_tokens // BLOCK_SIZE)))]
        found: list[TokenLogprob] = []
        done = 0
        while plan := _next_plan(sequences, slots, tables, done, chunk_size):
            found += self.runner.execute(plan, sequences).prompt_logprobs[0]
            done += chunk_size
        self._clear(slots)
        return found

    def classify(
        self, folders: Seq[Path], prompts: Seq[list[int]], max_tokens_per_step: int = 64
    ) -> list[tuple[float, ...]]:
        """Logits by label of each prompt's last token, through the real scheduler."""
        scheduler = self._scheduler(max_tokens_per_step, 64, NUM_BLOCKS)
        slots, num_virtual = self._place(folders, scheduler)
        sequences = {
            row: Sequence(
                row,
                (*(-1 - i for i in range(num_virtual[row])), *prompt),
                SamplingParams(seed=0),
                max_tokens=0,
                adapter_digest=str(folders[row]),
                classifies=True,
            )
            for row, prompt in enumerate(prompts)
        }
        scheduler.add(*sequences.values())
        scores: dict[int, tuple[float, ...]] = {}
        while (plan := scheduler.schedule(0.0)) is not None:
            for event in scheduler.update(plan, self.runner.execute(plan, sequences)):
                if isinstance(event, ClassScoresEvent):
                    scores[event.sequence_id] = event.scores
        self._clear(slots)
        return [scores[row] for row in sequences]

    def generate(
        self,
        folders: Seq[Path | None],
        prompts: Seq[list[int]],
        num_tokens: int,
        *,
        max_tokens_per_step: int = 64,
        max_running: int = 64,
        num_blocks: int = NUM_BLOCKS,
    ) -> tuple[list[list[int]], Scheduler]:
        """Greedy continuations through the real scheduler, and that scheduler, for its counts."""
        served = self.serve(
            folders,
            prompts,
            num_tokens,
            max_tokens_per_step=max_tokens_per_step,
            max_running=max_running,
            num_blocks=num_blocks,
        )
        return [sequence.output_token_ids for sequence in served.sequences], served.scheduler

    def serve(
        self,
        folders: Seq[Path | None],
        prompts: Seq[list[int]],
        num_tokens: int,
        *,
        max_tokens_per_step: int = 64,
        max_running: int = 64,
        num_blocks: int = NUM_BLOCKS,
        times: int = 1,
        guesses: Seq[list[int]] | None = None,
    ) -> "Served":
        """Greedy continuations through the real scheduler, of all rows as many times as asked, one
        time after the other; the result is of the last.

        Few `num_blocks` force preemption; a prompt given again, once the first has left room within
        `max_running`, hits the prefix cache. `guesses` are the rows' answers, right or wrong, that
        drafts are made of.
        """
        scheduler = self._scheduler(max_tokens_per_step, max_running, num_blocks)
        slots, num_virtual = self._place(folders, scheduler)
        for turn in range(times):
            sequences = {
                row: Sequence(
                    row,
                    (*(-1 - i for i in range(num_virtual[index])), *prompt),
                    SamplingParams(seed=0),
                    max_tokens=num_tokens,
                    adapter_digest="" if folders[index] is None else str(folders[index]),
                )
                for index, prompt in enumerate(prompts)
                for row in [turn * len(prompts) + index]
            }
            scheduler.add(*sequences.values())
            if guesses is not None:
                for (row, sequence), guess in zip(sequences.items(), guesses, strict=True):
                    scheduler._tracked[row].lookup = KnownAnswer(sequence, guess)
            logits = self._run_all(scheduler, sequences)
        self._clear(slots)
        return Served(list(sequences.values()), logits, scheduler)

    def _run_all(self, scheduler: Scheduler, sequences: dict[int, Sequence]) -> list[Tensor]:
        """Until all are finished; the logits of each one's sampled tokens."""
        logits: dict[int, list[Tensor]] = {row: [] for row in sequences}
        now = 0.0
        while (plan := scheduler.schedule(now)) is not None:
            result = self.runner.execute(plan, sequences)
            first_row = 0
            for scheduled in plan.sequences:
                if not scheduled.samples:
                    continue
                found = [t for t in result.sampled if t.sequence_id == scheduled.sequence_id]
                rows = self.runner.last_logits[first_row : first_row + len(found)]
                logits[scheduled.sequence_id] += rows
                first_row += 1 + scheduled.num_draft_tokens
            scheduler.update(plan, result)
            now += 1.0
        return [torch.stack(rows) for rows in logits.values()]

    def _scheduler(self, max_tokens_per_step: int, max_running: int, num_blocks: int) -> Scheduler:
        return Scheduler(
            SchedulerConfig(
                max_num_sequences=min(max_running, max_tokens_per_step),
                max_tokens_per_step=max_tokens_per_step,
                block_size=BLOCK_SIZE,
                num_blocks=num_blocks,
                max_context=self.base.context_length,
                max_queued=64,
                max_slots=self.max_slots,
            )
        )

    def _place(
        self, folders: Seq[Path | None], scheduler: Scheduler | None = None
    ) -> tuple[list[int], list[int]]:
        """Slot and number of virtual tokens of each row; rows of one folder share a slot."""
        placed: dict[Path, tuple[int, int]] = {}
        for folder in folders:
            if folder is None or folder in placed:
                continue
            lowered = self.lower(folder)
            packed = pack_adapter(lowered, self.base, None)
            slot = len(placed)
            if scheduler is not None:
                placement = scheduler.slots.place(str(folder), packed.num_bytes)
                assert placement is not None
                slot = placement.slot
            self.adapters.place(slot, packed)
            placed[folder] = (slot, lowered.num_virtual_tokens)
        rows = [(-1, 0) if folder is None else placed[folder] for folder in folders]
        return [slot for slot, _ in rows], [count for _, count in rows]

    def _clear(self, slots: list[int]) -> None:
        for slot in set(slots) - {-1}:
            self.adapters.clear(slot)


def _next_plan(
    sequences: dict[int, Sequence],
    slots: list[int],
    tables: list[tuple[int, ...]],
    start: int,
    chunk_size: int,
) -> StepPlan | None:
    scheduled = [
        ScheduledSequence(
            row,
            slots[row],
            sequence.token_ids(start, min(start + chunk_size, sequence.num_tokens)),
            start,
            tables[row],
            samples=False,
            wants_prompt_logprobs=True,
        )
        for row, sequence in sequences.items()
        if start < sequence.num_tokens
    ]
    scheduled.sort(key=lambda sequence: sequence.slot)
    return StepPlan(tuple(scheduled)) if scheduled else None
