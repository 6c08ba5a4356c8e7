"""One interceptor for every RPC: errors become statuses, a draining server refuses, codes count.

It also parses the request, so that bytes which are no valid message (a string that is not UTF-8,
say) are the caller's INVALID_ARGUMENT; gRPC itself would answer INTERNAL.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from graftwork.status import InvalidFieldError, WireError, to_grpc_status

from graftwork_server.errors import Draining, InternalError

logger = logging.getLogger(__name__)

# A draining server still says that it drains, and what it is.
_ANSWERED_WHILE_DRAINING = ("/grpc.health.", "/grpc.reflection.")
# A call that is cancelled so shortly before its deadline was cancelled by it: gRPC rounds a timeout
# up when it sends it, so that the caller's own clock is the first to give up.
_DEADLINE_SLACK_S = 0.1
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Handler = Any  # grpc.RpcMethodHandler: behaviours and codecs as attributes, untyped by gRPC
Context = Any  # grpc.aio.ServicerContext


class StatusInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # stubs only
    """Calls `observe_rpc(method, code)` once when an RPC ends, `is_draining()` when it begins."""

    def __init__(
        self,
        *,
        observe_rpc: Callable[[str, grpc.StatusCode], None],
        is_draining: Callable[[], bool],
    ) -> None:
        self._observe_rpc = observe_rpc
        self._is_draining = is_draining

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:  # unknown method; gRPC answers UNIMPLEMENTED
            return None
        method = handler_call_details.method
        parse = _stream_parser(handler) if handler.request_streaming else _parser(handler)
        if handler.response_streaming:
            behaviour = handler.stream_stream or handler.unary_stream
            wrapped: Any = self._streaming(method, behaviour, parse)
        else:
            behaviour = handler.stream_unary or handler.unary_unary
            wrapped = self._unary(method, behaviour, parse)
        return _with_behaviour(handler, wrapped)

    def _unary(self, method: str, behaviour: Any, parse: Callable[[Any], Any]) -> Any:
        async def answer(request: Any, context: Context) -> Any:
            async with self._answering(method, context):
                return await behaviour(parse(request), context)

        return answer

    def _streaming(self, method: str, behaviour: Any, parse: Callable[[Any], Any]) -> Any:
        async def answer(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._answering(method, context):
                if not inspect.isasyncgenfunction(behaviour):  # it writes through the context
                    await behaviour(parse(request), context)
                    return
                async with contextlib.aclosing(behaviour(parse(request), context)) as responses:
                    async for response in responses:
                        yield response

        return answer

    @contextlib.asynccontextmanager
    async def _answering(self, method: str, context: Context) -> AsyncIterator[None]:
        """Runs a behaviour; whatever it raises ends the RPC with the status that it stands for."""
        code = grpc.StatusCode.UNKNOWN
        try:
            self._refuse_while_draining(method)
            yield
            code = _code_set(context)
        except WireError as error:
            code = error.code
            await context.abort_with_status(to_grpc_status(error))
        except grpc.aio.AbortError:
            code = _code_set(context)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = _code_of_cancellation(context)
            raise
        except Exception as error:
            internal = InternalError()
            code = internal.code
            logger.exception("incident %s in %s", internal.metadata["incident"], method)
            await context.abort_with_status(to_grpc_status(internal))
            raise AssertionError from error  # abort_with_status always raises
        finally:
            self._observe_rpc(method, code)

    def _refuse_while_draining(self, method: str) -> None:
        if self._is_draining() and not method.startswith(_ANSWERED_WHILE_DRAINING):
            raise Draining


def _code_set(context: Context) -> grpc.StatusCode:
    """The code that the servicer set: as it was given; OK where none was."""
    code = context.code()
    return code if isinstance(code, grpc.StatusCode) else _CODES[code or 0]


def _code_of_cancellation(context: Context) -> grpc.StatusCode:
    remaining = context.time_remaining()
    if remaining is not None and remaining <= _DEADLINE_SLACK_S:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def _parser(handler: Handler) -> Callable[[bytes], Any]:
    deserialize = handler.request_deserializer

    def parse(request: bytes) -> Any:
        try:
            return deserialize(request)
        except DecodeError as error:
            raise InvalidFieldError(
                "request", f"not a valid message, or a string in it is not UTF-8 ({error})"
            ) from error

    return parse


def _stream_parser(handler: Handler) -> Callable[[AsyncIterator[bytes]], AsyncIterator[Any]]:
    parse = _parser(handler)

    async def parse_all(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            yield parse(request)

    return parse_all


def _with_behaviour(handler: Handler, behaviour: Any) -> Handler:
    """The handler with `behaviour` in place of its own, fed the request's bytes."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(behaviour, None, handler.response_serializer)
