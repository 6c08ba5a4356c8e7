"""Turns a step plan into tensors, runs the base over them once, and samples."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graftwork_server.attention import AttentionStep, KvCache
from graftwork_server.base_model import BaseModel
from graftwork_server.device_adapters import DeviceAdapters
from graftwork_server.kernels.segments import Segments
from graftwork_server.plan import (
    ScheduledSequence,
    StepPlan,
    StepResult,
    TokenLogprob,
)
from graftwork_server.request import Sequence
from graftwork_server.sampler import Sampler
from graftwork_server.verification import Candidate, sample_through_drafts


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The tensors of one step: the tokens of all sequences laid end to end."""

    token_ids: Tensor  # (num_tokens,) int64; negative: virtual tokens
    position_ids: Tensor  # (num_tokens,) int64
    attention: AttentionStep
    segments: Segments  # over the tokens
    logit_rows: Tensor  # (num_logit_rows,) int64: tokens whose logits are wanted
    logit_segments: Segments  # over the logit rows


class Runner:
    """Owns the key/value cache; `execute` is the only thing that computes."""

    def __init__(
        self,
        base: BaseModel,
        adapters: DeviceAdapters,
        sampler: Sampler,
        caches: tuple[KvCache, ...],
        *,
        block_size: int,
    ) -> None:
        self._base = base
        self._adapters = adapters
        self._sampler = sampler
        self._caches = caches
        self._block_size = block_size

    def execute(self, plan: StepPlan, sequences: Mapping[int, Sequence]) -> StepResult:
        """Runs one step; `sequences` maps the plan's ids to what was asked."""
        with torch.inference_mode():
            inputs = self._build_inputs(plan)
            with self._adapters.step(inputs.segments, inputs.logit_segments):
                logits = self._forward(inputs)
                return self._read_out(plan, sequences, logits)

    def forget(self, sequence_id: int) -> None:
        """Frees what sampling keeps of a finished sequence."""
        self._sampler.forget(sequence_id)

    def _build_inputs(self, plan: StepPlan) -> StepInputs:
        device = self._base.device
        scheduled = plan.sequences
        counts = np.fromiter((s.num_tokens for s in scheduled), np.int64, len(scheduled))
        starts = np.fromiter((s.start_position for s in scheduled), np.int64, len(scheduled))
        query_start = np.zeros(len(scheduled) + 1, np.int32)
        np.cumsum(counts, out=query_start[1:])
        num_tokens = int(query_start[-1])
        token_ids = np.fromiter((t for s in scheduled for t in s.token_ids), np.int64, num_tokens)
        positions = np.arange(num_tokens) + np.repeat(starts - query_start[:-1], counts)

        width = max(len(s.block_ids) for s in scheduled)
        block_tables = np.zeros((len(scheduled), width), np.int32)
        for row, sequence in enumerate(scheduled):
            block_tables[row, : len(sequence.block_ids)] = sequence.block_ids
        row_of_token = np.repeat(np.arange(len(scheduled)), counts)
        blocks = block_tables[row_of_token, positions // self._block_size].astype(np.int64)
        slot_mapping = blocks * self._block_size + positions % self._block_size

        logit_rows = np.concatenate(
            [
                np.arange(stop - _num_logit_rows(s), stop)
                for s, stop in zip(scheduled, query_start[1:], strict=True)
            ]
        )
        segments = Segments.from_lengths((s.slot, s.num_tokens) for s in scheduled)
        device_ids = torch.from_numpy(token_ids).to(device)
        attention = AttentionStep(
            caches=self._caches,
            slot_mapping=torch.from_numpy(slot_mapping).to(device),
            block_tables=torch.from_numpy(block_tables).to(device),
            query_start=torch.from_numpy(query_start),
            context_lens=torch.from_numpy((starts + counts).astype(np.int32)),
            prefix_writes=(
                self._adapters.prefix_writes(device_ids, segments) if (token_ids < 0).any() else ()
            ),
            gated_runs=self._adapters.gated_runs(segments),
            gated_tokens=self._adapters.gated_tokens(segments),
        )
        return StepInputs(
            token_ids=device_ids,
            position_ids=torch.from_numpy(positions).to(device),
            attention=attention,
            segments=segments,
            logit_rows=torch.from_numpy(logit_rows).to(device),
            logit_segments=Segments.from_lengths((s.slot, _num_logit_rows(s)) for s in scheduled),
        )

    def _forward(self, inputs: StepInputs) -> Tensor:
        """Logits of the wanted rows: (num_logit_rows, vocab_size) float32."""
        embeddings = self._adapters.embed(inputs.token_ids, inputs.segments)
        output = self._base.model(
            inputs_embeds=embeddings.unsqueeze(0),
            position_ids=inputs.position_ids.unsqueeze(0),
            use_cache=False,
            logits_to_keep=inputs.logit_rows,
            attention_step=inputs.attention,
        )
        logits: Tensor = output.logits[0].float()
        return logits

    def _read_out(
        self, plan: StepPlan, sequences: Mapping[int, Sequence], logits: Tensor
    ) -> StepResult:
        sampling: list[Candidate] = []
        prompt_logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
        class_scores: dict[int, tuple[float, ...]] = {}
        row = 0
        for scheduled in plan.sequences:
            sequence = sequences[scheduled.sequence_id]
            if scheduled.wants_prompt_logprobs:
                count = self.num_prompt_logit_rows(scheduled, sequence)
                prompt_logprobs[scheduled.sequence_id] = self._prompt_logprobs(
                    scheduled, sequence, logits[row : row + count]
                )
                row += scheduled.num_tokens
                if scheduled.samples:
                    sampling.append(Candidate(sequence, row - 1))
            elif scheduled.samples:
                sampling.append(Candidate(sequence, row, scheduled.draft))
                row += 1 + scheduled.num_draft_tokens
            elif scheduled.classifies:
                scores = self._adapters.class_scores(scheduled.slot, row)
                class_scores[scheduled.sequence_id] = scores
                row += 1
        sampled = sample_through_drafts(self._sampler, logits, sampling)
        return StepResult(sampled, prompt_logprobs, class_scores)

    def _prompt_logprobs(
        self, scheduled: ScheduledSequence, sequence: Sequence, logits: Tensor
    ) -> tuple[TokenLogprob, ...]:
        """Of the prompt tokens that follow this step's tokens; virtual tokens have none."""
        first = scheduled.start_position + 1
        following = sequence.prompt_token_ids[first : first + logits.shape[0]]
        skipped = sum(token_id < 0 for token_id in following)
        unpredicted: tuple[TokenLogprob, ...] = ()
        follows_virtual = first - 1 < sequence.num_virtual_tokens == first + skipped
        if follows_virtual and following[skipped:] and self._adapters.has_prefix(scheduled.slot):
            # The virtual token before the first real one has keys and values, but no output.
            unpredicted = (TokenLogprob(following[skipped], None),)
            skipped += 1
        token_ids = torch.tensor(following[skipped:], dtype=torch.int64, device=logits.device)
        num_top = sequence.sampling.prompt_logprobs or 0
        predicted = self._sampler.logprobs_of(logits[skipped:], token_ids, num_top)
        return (*unpredicted, *predicted)

    @staticmethod
    def num_prompt_logit_rows(scheduled: ScheduledSequence, sequence: Sequence) -> int:
        """How many of the step's tokens are followed by a prompt token."""
        last = len(sequence.prompt_token_ids) - 1
        return max(0, min(scheduled.num_tokens, last - scheduled.start_position))


def _num_logit_rows(scheduled: ScheduledSequence) -> int:
    """How many of a sequence's tokens, counted from its last, have their logits computed."""
    if scheduled.wants_prompt_logprobs:
        return scheduled.num_tokens
    return int(scheduled.samples or scheduled.classifies) + scheduled.num_draft_tokens
