"""The journal of a server: `client.feedback`."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Unpack

from graftwork import feedback_messages as messages
from graftwork.calls import Calls
from graftwork.feedback_types import (
    Deletion,
    ExampleQuery,
    Feedback,
    FeedbackOptions,
    FeedbackQuery,
    GenerationQuery,
    LoggedGeneration,
    Refusal,
)
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1.feedback_service_pb2_grpc import FeedbackServiceStub


class FeedbackJournal:
    """Gives feedback on generations, and reads what the journal holds.

        client.feedback.submit(generation_id=answer.choices[0].generation_id, thumbs=False)

    Feedback is on the server's disk when a call returns. `timeout` is in seconds and defaults to
    the client's. Errors are those of `graftwork.errors`.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = FeedbackServiceStub(calls.channel)  # type: ignore[no-untyped-call]

    def submit(
        self, *, timeout: float | None = None, **options: Unpack[FeedbackOptions]
    ) -> Feedback:
        """Submits one item: exactly one target and one value of `FeedbackOptions`."""
        request = messages.submit_request(options)
        return messages.feedback(self._calls.unary(self._stub.SubmitFeedback, request, timeout))

    def submit_many(
        self, items: Iterable[FeedbackOptions], *, timeout: float | None = None
    ) -> list[Feedback | Refusal]:
        """Submits many in few calls, each with the timeout; an outcome for each item, in order. One
        that is refused does not hold up the others."""
        found: list[Feedback | Refusal] = []
        for batch in messages.batches(items):
            answer = self._calls.unary(self._stub.BatchSubmitFeedback, batch, timeout)
            found += messages.outcomes(answer)
        return found

    def list(
        self,
        *,
        page_size: int = 0,
        timeout: float | None = None,
        **query: Unpack[FeedbackQuery],
    ) -> Iterator[Feedback]:
        """Feedback, newest first, page by page as the iterator is drawn."""
        request = messages.list_request(query, page_size)
        while True:
            page = self._calls.unary(self._stub.ListFeedback, request, timeout)
            yield from map(messages.feedback, page.feedback)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def generations(
        self,
        *,
        page_size: int = 0,
        timeout: float | None = None,
        **query: Unpack[GenerationQuery],
    ) -> Iterator[LoggedGeneration]:
        """Generations, newest first, page by page as the iterator is drawn."""
        request = messages.generations_request(query, page_size)
        while True:
            page = self._calls.unary(self._stub.ListGenerations, request, timeout)
            yield from map(messages.generation, page.generations)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def delete(
        self,
        ids: Sequence[str] = (),
        *,
        author: str = "",
        episode_id: str = "",
        timeout: float | None = None,
    ) -> Deletion:
        """Deletes generations and the feedback on them: those with the ids, or of an episode, or
        those that an author gave feedback on. Exactly one of the three."""
        request = pb.DeleteGenerationsRequest(ids=ids, author=author, episode_id=episode_id)
        return messages.deletion(self._calls.unary(self._stub.DeleteGenerations, request, timeout))

    def export(
        self,
        format_name: str,
        *,
        scrub: bool | None = None,
        timeout: float | None = None,
        **query: Unpack[ExampleQuery],
    ) -> Iterator[dict[str, Any]]:
        """The examples that a training job would read, as they come: format "sft", "preference",
        "unpaired", "reward" or "classification". Personal data and secrets are replaced unless
        `scrub` is False."""
        request = messages.export_request(format_name, query, scrub)
        with closing(self._calls.stream(self._stub.ExportDataset, request, timeout)) as call:
            for message in call:
                yield from map(json.loads, message.jsonl.splitlines())
