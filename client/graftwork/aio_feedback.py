"""The journal of a server, for the async client: `client.feedback`."""

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Unpack

from graftwork import feedback_messages as messages
from graftwork.aio_calls import AsyncCalls
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


class AsyncFeedbackJournal:
    """Gives feedback and reads the journal; meanings as in `graftwork.feedback`."""

    def __init__(self, calls: AsyncCalls) -> None:
        self._calls = calls
        self._stub = FeedbackServiceStub(calls.channel)  # type: ignore[no-untyped-call]

    async def submit(
        self, *, timeout: float | None = None, **options: Unpack[FeedbackOptions]
    ) -> Feedback:
        """Submits one item: exactly one target and one value of `FeedbackOptions`."""
        request = messages.submit_request(options)
        answer = await self._calls.unary(self._stub.SubmitFeedback, request, timeout)
        return messages.feedback(answer)

    async def submit_many(
        self, items: Iterable[FeedbackOptions], *, timeout: float | None = None
    ) -> list[Feedback | Refusal]:
        """Submits many in few calls; an outcome for each item, in order."""
        found: list[Feedback | Refusal] = []
        for batch in messages.batches(items):
            answer = await self._calls.unary(self._stub.BatchSubmitFeedback, batch, timeout)
            found += messages.outcomes(answer)
        return found

    async def list(
        self,
        *,
        page_size: int = 0,
        timeout: float | None = None,
        **query: Unpack[FeedbackQuery],
    ) -> AsyncIterator[Feedback]:
        """Feedback, newest first, page by page as the iterator is drawn."""
        request = messages.list_request(query, page_size)
        while True:
            page = await self._calls.unary(self._stub.ListFeedback, request, timeout)
            for message in page.feedback:
                yield messages.feedback(message)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    async def generations(
        self,
        *,
        page_size: int = 0,
        timeout: float | None = None,
        **query: Unpack[GenerationQuery],
    ) -> AsyncIterator[LoggedGeneration]:
        """Generations, newest first, page by page as the iterator is drawn."""
        request = messages.generations_request(query, page_size)
        while True:
            page = await self._calls.unary(self._stub.ListGenerations, request, timeout)
            for message in page.generations:
                yield messages.generation(message)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    async def delete(
        self,
        ids: Sequence[str] = (),
        *,
        author: str = "",
        episode_id: str = "",
        timeout: float | None = None,
    ) -> Deletion:
        """Deletes generations and the feedback on them: by ids, author or episode."""
        request = pb.DeleteGenerationsRequest(ids=ids, author=author, episode_id=episode_id)
        return messages.deletion(
            await self._calls.unary(self._stub.DeleteGenerations, request, timeout)
        )

    async def export(
        self,
        format_name: str,
        *,
        scrub: bool | None = None,
        timeout: float | None = None,
        **query: Unpack[ExampleQuery],
    ) -> AsyncIterator[dict[str, Any]]:
        """The examples that a training job would read, as they come."""
        request = messages.export_request(format_name, query, scrub)
        call = self._calls.stream(self._stub.ExportDataset, request, timeout)
        async with aclosing(call):
            async for message in call:
                for line in message.jsonl.splitlines():
                    yield json.loads(line)
