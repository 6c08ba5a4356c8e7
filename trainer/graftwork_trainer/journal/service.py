"""FeedbackService: parses, hands over to the journal, answers.

Raises WireErrors; the server's interceptor turns them into statuses.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import Executor
from typing import Any, TypeVar

import grpc
from graftwork.status import InvalidFieldError, WireError
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import feedback_service_pb2_grpc as pb_grpc
from graftwork_adapters.paging import check_page_size

from graftwork_trainer.journal.export import export
from graftwork_trainer.journal.filters import MAX_IDS, feedback_filter, generation_filter
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.judge import Outcome
from graftwork_trainer.journal.messages import feedback_message, generation_message
from graftwork_trainer.journal.parsing import parse_submission
from graftwork_trainer.journal.records import Draft

MAX_BATCH = 1000
_CHUNK_BYTES = 256 * 1024

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class FeedbackServicer(pb_grpc.FeedbackServiceServicer):
    """`executor` runs what reads the database; writes wait on the journal's own thread. `redact`
    takes deleted items out of what was made of them (`datasets.redaction.Redactor`)."""

    def __init__(
        self, journal: Journal, executor: Executor, redact: Callable[[Collection[str]], None]
    ) -> None:
        self._journal = journal
        self._executor = executor
        self._redact = redact

    async def SubmitFeedback(
        self, request: pb.SubmitFeedbackRequest, context: Context
    ) -> pb.Feedback:
        draft = parse_submission(request)
        (outcome,) = await self._submit([draft])
        if isinstance(outcome, WireError):
            raise outcome
        return feedback_message(outcome)

    async def BatchSubmitFeedback(
        self, request: pb.BatchSubmitFeedbackRequest, context: Context
    ) -> pb.BatchSubmitFeedbackResponse:
        if len(request.requests) > MAX_BATCH:
            raise InvalidFieldError(
                "requests", f"has {len(request.requests)} entries, and at most {MAX_BATCH}"
            )
        parsed = await self._run(_parse_all, request)
        outcomes = iter(await self._submit([d for d in parsed if isinstance(d, Draft)]))
        merged = [next(outcomes) if isinstance(p, Draft) else p for p in parsed]
        return await self._run(_batch_response, merged)

    async def ListFeedback(
        self, request: pb.ListFeedbackRequest, context: Context
    ) -> pb.ListFeedbackResponse:
        wanted = feedback_filter(request.filter)
        size = check_page_size(request.page_size)

        def read() -> pb.ListFeedbackResponse:
            page = self._journal.list_feedback(
                wanted, page_size=size, page_token=request.page_token
            )
            return pb.ListFeedbackResponse(
                feedback=map(feedback_message, page.items), next_page_token=page.next_page_token
            )

        return await self._run(read)

    async def ListGenerations(
        self, request: pb.ListGenerationsRequest, context: Context
    ) -> pb.ListGenerationsResponse:
        wanted = generation_filter(request.filter)
        size = check_page_size(request.page_size)

        def read() -> pb.ListGenerationsResponse:
            self._journal.settle()
            page = self._journal.list_generations(
                wanted, page_size=size, page_token=request.page_token
            )
            return pb.ListGenerationsResponse(
                generations=map(generation_message, page.items),
                next_page_token=page.next_page_token,
            )

        return await self._run(read)

    async def DeleteGenerations(
        self, request: pb.DeleteGenerationsRequest, context: Context
    ) -> pb.DeleteGenerationsResponse:
        given = [name for name in ("ids", "author", "episode_id") if getattr(request, name)]
        if len(given) != 1:
            raise InvalidFieldError(
                given[1] if given else "ids", "give exactly one of ids, author and episode_id"
            )
        _check_plain(request)
        if request.ids:
            future = self._journal.delete_ids(list(request.ids))
        elif request.author:
            future = self._journal.delete_author(request.author)
        else:
            future = self._journal.delete_episode(request.episode_id)
        deleted = await asyncio.wrap_future(future)
        await self._run(self._redact, deleted.items)
        return pb.DeleteGenerationsResponse(
            num_generations=deleted.num_generations,
            num_feedback=deleted.num_feedback,
            trained_versions=deleted.trained_versions,
        )

    async def ExportDataset(
        self, request: pb.ExportDatasetRequest, context: Context
    ) -> AsyncIterator[pb.ExportDatasetResponse]:
        scrub = request.scrub if request.HasField("scrub") else True
        await self._run(self._journal.settle)
        lines = export(self._journal, request.selection, scrub=scrub)
        while (chunk := await self._run(_next_chunk, lines)) is not None:
            yield chunk

    async def _submit(self, drafts: list[Draft]) -> list[Outcome]:
        if not drafts:
            return []
        return await asyncio.wrap_future(self._journal.submit(drafts))

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


def _parse_all(request: pb.BatchSubmitFeedbackRequest) -> list[Draft | WireError]:
    parsed: list[Draft | WireError] = []
    for item in request.requests:
        try:
            parsed.append(parse_submission(item))
        except WireError as error:
            parsed.append(error)
    return parsed


def _batch_response(outcomes: list[Outcome]) -> pb.BatchSubmitFeedbackResponse:
    response = pb.BatchSubmitFeedbackResponse()
    for outcome in outcomes:
        if isinstance(outcome, WireError):
            code: int = outcome.code.value[0]
            error = pb.FeedbackError(
                code=code, reason=outcome.reason, message=outcome.message, field=outcome.field or ""
            )
            response.results.add(error=error)
        else:
            response.results.add(feedback=feedback_message(outcome))
    return response


def _check_plain(request: pb.DeleteGenerationsRequest) -> None:
    if len(request.ids) > MAX_IDS:
        raise InvalidFieldError("ids", f"has {len(request.ids)} entries, and at most {MAX_IDS}")
    for field, text in (
        ("author", request.author),
        ("episode_id", request.episode_id),
        *((f"ids[{index}]", text) for index, text in enumerate(request.ids)),
    ):
        if "\0" in text:
            raise InvalidFieldError(field, "has a null character in it")


def _next_chunk(lines: Iterator[bytes]) -> pb.ExportDatasetResponse | None:
    """Whole lines of about _CHUNK_BYTES; None at the end."""
    taken: list[bytes] = []
    size = 0
    for line in lines:
        taken.append(line)
        size += len(line)
        if size >= _CHUNK_BYTES:
            break
    if not taken:
        return None
    return pb.ExportDatasetResponse(jsonl=b"".join(taken), num_examples=len(taken))
