"""A service by HTTP: the Open Inference Protocol v2 on its first device, and metrics on each.

.. code-block:: none

    GET  /v2/health/live, /v2/health/ready          ready: no device is away
    GET  /v2                                        the server
    GET  /v2/models/NAME[/versions/1][/ready]       the model; its name is the service's
    POST /v2/models/NAME[/versions/1]/infer         isthmus.run.oip
    GET  /metrics                                   isthmus.run.metrics

What is wrong is one line, ``{"error": "..."}``. All that is read is bounded: each body, all bodies
together, and the time that one takes. There is no TLS and there are no keys, so inference is
offered on loopback only; put a proxy before it.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from isthmus import __version__
from isthmus.errors import InputError, RequestError, RunError, naming
from isthmus.run import oip
from isthmus.run.early import Result
from isthmus.run.metrics import count_service
from isthmus.run.service import LOOPBACK, Service, address

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

PORT = 8000
METRICS_PORT = 9100

_HEAD_LENGTH = "Inference-Header-Content-Length"
_STATUS = {"refused": 400, "failed": 500, "busy": 503, "deadline": 504}
_DEADLINE_S = 10.0  # of a request that does not say
_BODIES = 4  # as many of the longest may be held at a time
_SMALL_BYTES = 16 << 10  # are read sooner than a thread begins
_READ_S = 30.0
_KEEP_S = 60  # of a connection that nobody uses
_GRACE_S = 5  # for answers that are being sent when the service stops
_RETRY_AFTER_S = "1"


@contextmanager
def open_http(
    service: Service, *, http: str | None = None, metrics: str | None = None
) -> Iterator[tuple[str, ...]]:
    """Offer a service by HTTP until the context ends.

    Args:
        service: One device, which need not be at work yet.
        http: ``HOST:PORT``, ``HOST`` or ``PORT`` for inference and metrics; the first device's.
        metrics: Likewise for metrics alone.

    Yields:
        Where it listens, for people.

    Raises:
        InputError: An address is none, not one of loopback, or not for this device.
        RunError: A port is taken, or the address is not this machine's.
    """
    apps = {}
    registry = count_service(service)
    if http is not None:
        apps[_http_place(service, http)] = inference_app(service, registry)
    if metrics is not None:
        place = _place("--metrics", metrics, METRICS_PORT)
        if place in apps:
            raise InputError(f"--metrics {metrics}: --http has this address, and /metrics too")
        apps[place] = _app([Route("/metrics", _metrics)], registry)
    with ExitStack() as stack:
        for place, app in apps.items():
            stack.enter_context(_running(app, place))
        yield tuple(f"http://{place}" for place in apps)


def inference_app(service: Service, registry: CollectorRegistry) -> Starlette:
    """Return what answers for a service's first device."""
    model = "/v2/models/{name}"
    routes = [
        Route("/v2", _server),
        Route("/v2/health/live", _live),
        Route("/v2/health/ready", _ready),
        Route("/metrics", _metrics),
    ]
    for path in (model, model + "/versions/{version}"):
        routes += [
            Route(path, _model),
            Route(path + "/ready", _model_ready),
            Route(path + "/infer", _infer, methods=["POST"]),
        ]
    app = _app(routes, registry)
    app.state.service = service
    app.state.body_limit = oip.body_limit(service.bundle.inputs)
    app.state.held_bytes = 0
    return app


def _app(routes: list[Route], registry: CollectorRegistry) -> Starlette:
    app = Starlette(
        routes=routes,
        exception_handlers={
            RequestError: _on_request_error,
            HTTPException: _on_http_error,
            Exception: _on_fault,
        },
    )
    app.state.registry = registry
    return app


async def _live(_: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(request: Request) -> Response:
    _check_ready(_service(request))
    return JSONResponse({"ready": True})


async def _server(_: Request) -> Response:
    return JSONResponse(
        {"name": "isthmus", "version": __version__, "extensions": ["binary_tensor_data"]}
    )


async def _model(request: Request) -> Response:
    service = _service(request)
    _check_model(request)
    return JSONResponse(oip.describe(service.bundle, service.name))


async def _model_ready(request: Request) -> Response:
    service = _service(request)
    _check_model(request)
    _check_ready(service)
    return JSONResponse({"name": service.name, "ready": True})


async def _metrics(request: Request) -> Response:
    registry: CollectorRegistry = request.app.state.registry
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})


async def _infer(request: Request) -> Response:
    service, state = _service(request), request.app.state
    assert service.ingress is not None
    _check_model(request)
    body = bytearray()
    try:
        try:
            await _read_body(request, body)
            question = await _aside(
                len(body), oip.read_question, bytes(body), _head_length(request), service.bundle
            )
        except RequestError as error:
            service.ingress.on_end(error.reason, 0.0)
            raise
        futures = service.ingress.submit_all(
            question.payloads,
            deadline_s=_DEADLINE_S if question.timeout_s is None else question.timeout_s,
            priority=question.priority,
        )
        results = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    finally:
        state.held_bytes -= len(body)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    done = [result for result in results if isinstance(result, Result)]
    size = sum(len(result.payload) for result in done)
    answer, head_bytes = await _aside(
        size, oip.write_answer, question, done, service.bundle, service.name
    )
    if head_bytes is None:
        return Response(answer, media_type="application/json")
    return Response(
        answer,
        media_type="application/octet-stream",
        headers={_HEAD_LENGTH: str(head_bytes)},
    )


async def _aside(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Call a function on so many bytes: in a thread if they are many, as others wait meanwhile."""
    if size <= _SMALL_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


async def _read_body(request: Request, body: bytearray) -> None:
    """Read a body, within its bounds; its bytes are counted among those held, also on errors.

    Raises:
        RequestError: It is packed, or other bodies fill the memory.
        HTTPException: It is too long, takes too long, or ends too early.
    """
    state = request.app.state
    limit: int = state.body_limit
    packed = request.headers.get("content-encoding", "identity")
    if packed != "identity":
        raise RequestError(
            f"request: found Content-Encoding {packed[:20]!r}, expected none", reason="refused"
        )
    length = request.headers.get("content-length", "0")
    _check_length(int(length) if length.isdecimal() else 0, limit)
    try:
        async with asyncio.timeout(_READ_S):
            async for chunk in request.stream():
                body += chunk
                state.held_bytes += len(chunk)
                _check_length(len(body), limit)
                if state.held_bytes > _BODIES * limit:
                    raise RequestError(
                        "the service holds as many bytes of requests as it may; ask again later",
                        reason="busy",
                    )
    except TimeoutError as error:
        raise HTTPException(408, f"the body took over {_READ_S:g} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body ended too early") from error


def _check_length(found: int, limit: int) -> None:
    if found > limit:
        raise HTTPException(
            413,
            f"the body is over {limit} bytes, which is enough for {oip.MAX_BATCH} samples; send "
            "fewer at a time",
        )


def _head_length(request: Request) -> int | None:
    text = request.headers.get(_HEAD_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise RequestError(
            f"request: found {_HEAD_LENGTH} {text[:20]!r}, expected a number of bytes",
            reason="refused",
        )
    return int(text)


def _service(request: Request) -> Service:
    return request.app.state.service


def _check_model(request: Request) -> None:
    name, version = request.path_params["name"], request.path_params.get("version", oip.VERSION)
    expected = _service(request).name
    if (name, version) != (expected, oip.VERSION):
        raise HTTPException(
            404,
            f"found no model {name[:60]!r} of version {version[:20]!r}; there is {expected!r}, "
            f"version {oip.VERSION!r}",
        )


def _check_ready(service: Service) -> None:
    assert service.ingress is not None
    away = service.watch.away()
    if away:
        raise HTTPException(
            503,
            f"{', '.join(away)} {'is' if len(away) == 1 else 'are'} away",
            headers={"Retry-After": _RETRY_AFTER_S},
        )
    if not service.ingress.is_open:
        raise HTTPException(503, "the service is being stopped")


async def _on_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": _RETRY_AFTER_S} if error.reason == "busy" else None
    return _say(_STATUS[error.reason], str(error), headers)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _say(error.status_code, error.detail, dict(error.headers or {}))


async def _on_fault(_: Request, error: Exception) -> Response:
    """Answer where Isthmus itself is wrong, and leave the trace in the log."""
    _LOG.error("an answer by HTTP failed", exc_info=error)
    return _say(500, f"the service failed by itself ({type(error).__name__}); see its log")


def _say(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


def _http_place(service: Service, text: str) -> str:
    """Return where inference is offered."""
    place = _place("--http", text, PORT)
    if service.ingress is None:
        raise InputError(
            f"--http {text}: device {service.device} is not the first one; give it to "
            f"{service.bundle.devices[0].name}, and --metrics to every device"
        )
    if place.rpartition(":")[0] not in LOOPBACK:
        raise InputError(
            f"--http {text}: expected 127.0.0.1, as everybody could use another address; put a "
            "proxy with TLS before it"
        )
    return place


def _place(option: str, text: str, port: int) -> str:
    with naming(option):
        return address(f"127.0.0.1:{text}" if text.isdecimal() else text, port)


@contextmanager
def _running(app: Starlette, place: str) -> Iterator[None]:
    """Run a server in a thread; what it has begun to answer is answered before it ends."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # what is worth a line is said by _on_fault
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = uvicorn.Server(config)
    listening = _listen(place)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}, name="isthmus-http", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def _listen(place: str) -> socket.socket:
    host, _, port = place.rpartition(":")
    try:
        family, _, _, _, found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        listening = socket.create_server(found[:2], family=family)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or answers wait for acks
        return listening
    except OSError as error:
        raise RunError(
            f"http://{place}: cannot listen there ({error.strerror}); name another port or host"
        ) from error
