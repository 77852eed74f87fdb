"""Ask a service from anywhere that reaches its first device."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import zenoh

from isthmus.backends import Array
from isthmus.errors import InputError, RequestError, RunError
from isthmus.files import from_json, to_json
from isthmus.run import border
from isthmus.run.early import Outputs
from isthmus.run.messages import About, Ask, How, about_key, infer_key, read_refusal
from isthmus.run.service import PORT, SERVICE, address, check_service
from isthmus.run.session import close_session, open_session

PARALLEL = 16  # requests of one client at a time
_SLACK_S = 0.5  # the service's answer that the time is up may take so long to arrive
_PAUSE_S = 0.02
_ASK_AGAIN_S = 2.0  # at first; then after as long again as it has taken


class Client:
    """A connection to a service, which may start later, or start again; close it after use.

    Args:
        host: Address of the first device, ``HOST`` or ``HOST:PORT``.
        service: Its name, where one network has several.
        deadline_s: How long a request may take, in seconds, where it does not say.
        keys: The folder of this client's certificate and key, as `isthmus.run.keys` issues them,
            for a service that has keys.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        service: str = SERVICE,
        deadline_s: float = 10.0,
        keys: Path | None = None,
    ) -> None:
        self.host = address(host, PORT)
        self.deadline_s = deadline_s
        self._service = service
        self._about: About | None = None
        check_service(service)
        if not deadline_s > 0:
            raise InputError(f"deadline: found {deadline_s:g} s, expected more than 0 s")
        self._session = open_client(self.host, keys)
        self._threads = ThreadPoolExecutor(PARALLEL, "isthmus-client")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; requests under way end with an error."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        close_session(self._session)

    def about(self, *, deadline_s: float | None = None) -> About:
        """Return what the service is, and how it is.

        Raises:
            RequestError: Nobody answers in time.
        """
        data, _ = self._ask(about_key(self._service), None, None, deadline_s or self.deadline_s)
        self._about = from_json(data, About, where=self.host)
        return self._about

    def ask(self, *sample: Array, deadline_s: float | None = None, priority: int = 0) -> Outputs:
        """Run one sample through the service.

        Args:
            sample: One array for each input of the model, without a batch.
            deadline_s: How long it may take, in seconds.
            priority: Higher goes first.

        Returns:
            The model's outputs, one sample; they say how they came.

        Raises:
            RequestError: It has no result; says why.
        """
        deadline_s = deadline_s or self.deadline_s
        start_s = time.monotonic()
        about = self._about or self.about(deadline_s=deadline_s)
        try:
            payload = border.to_bytes(sample, about.inputs)
        except RunError as error:
            self._about = None  # it may have begun to serve another bundle: look next time
            raise RequestError(str(error), reason="refused") from error
        left_s = deadline_s - (time.monotonic() - start_s)
        key = infer_key(self._service)
        try:
            data, how = self._ask(key, payload, uuid.uuid4().hex, left_s, priority, about.bundle)
        except RequestError as error:
            left_s = deadline_s - (time.monotonic() - start_s)
            if error.reason != "refused" or left_s <= 0:
                raise
            if self.about(deadline_s=left_s).bundle == about.bundle:
                raise
            return self.ask(*sample, deadline_s=left_s, priority=priority)
        try:
            outputs = Outputs(border.from_bytes(data, about.outputs))
        except RunError as error:
            self._about = None
            raise RequestError(f"{self.host}: {error}", reason="failed") from error
        outputs.width, outputs.early_exit = how.width, how.early_exit
        return outputs

    def submit(
        self, *sample: Array, deadline_s: float | None = None, priority: int = 0
    ) -> Future[Outputs]:
        """Do as `ask`, in the background."""
        return self._threads.submit(self.ask, *sample, deadline_s=deadline_s, priority=priority)

    async def ask_async(
        self, *sample: Array, deadline_s: float | None = None, priority: int = 0
    ) -> Outputs:
        """Do as `ask`, for asyncio."""
        future = self.submit(*sample, deadline_s=deadline_s, priority=priority)
        return await asyncio.wrap_future(future)

    def ask_all(
        self,
        samples: Iterable[Sequence[Array]],
        *,
        deadline_s: float | None = None,
        priority: int = 0,
    ) -> Iterator[Outputs | RequestError]:
        """Run many samples through the service, several at a time.

        Yields:
            Of each sample, in their order, the outputs or why there are none.
        """
        waiting: deque[Future[Outputs]] = deque()
        for sample in samples:
            waiting.append(self.submit(*sample, deadline_s=deadline_s, priority=priority))
            if len(waiting) >= PARALLEL:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())

    def _ask(
        self,
        key: str,
        payload: bytes | None,
        id_: str | None,
        limit_s: float,
        priority: int = 0,
        bundle: str = "",
    ) -> tuple[bytes, How]:
        """Put a question, again and again if need be: who answers may be starting, or again.

        Asked again under the same name it is the same request while that is under way. A question
        whose answer was lost with the connection may be left open by zenoh until its time is up.

        Returns:
            The answer, and how it came.
        """
        end_s = time.monotonic() + limit_s
        while (left_s := end_s - time.monotonic()) > 0:
            ask = Ask(id=id_ or "", deadline_s=left_s, priority=priority, bundle=bundle)
            patience_s = max(_ASK_AGAIN_S, limit_s - left_s)
            for reply in self._session.get(
                key,
                payload=payload,
                attachment=to_json(ask),
                timeout=patience_s if left_s > patience_s else left_s + _SLACK_S,
            ):
                if reply.ok is not None:
                    said = reply.ok.attachment
                    data = b"" if said is None else said.to_bytes()
                    how = from_json(data, How, where=self.host) if data else How()
                    return reply.ok.payload.to_bytes(), how
                if reply.err is not None:
                    no = read_refusal(reply.err.payload.to_bytes(), where=self.host)
                    if no is not None:
                        raise RequestError(no.message, reason=no.reason, device=no.device)
            time.sleep(_PAUSE_S)
        raise RequestError(
            f"{self.host}: nobody answers for service {self._service!r} within "
            f"{max(limit_s, 0):.3g} s; is `isthmus serve` running there, with that --service, and "
            "does it accept these --keys?",
            reason="deadline",
        )


def open_client(host: str, keys: Path | None) -> zenoh.Session:
    """Open a session that connects to a host, which may start later, and to nobody else.

    Args:
        host: ``HOST:PORT``.
        keys: The folder of one's own certificate and key; None for a host without.
    """
    scheme, belonging = "tcp", {}
    if keys is not None:
        from isthmus.run.keys import tls_settings  # noqa: PLC0415  needs the extra `serve`

        scheme, belonging = "tls", tls_settings(keys)
    more = {
        "connect/endpoints": [f"{scheme}/{host}"],
        "connect/exit_on_failure": False,
        "connect/timeout_ms": -1,
        "connect/retry": {"period_init_ms": 50, "period_max_ms": 500},
        "scouting/gossip/enabled": False,
        "adminspace/enabled": False,
        **belonging,
    }
    return open_session(listen="", more=more)


def _result(future: Future[Outputs]) -> Outputs | RequestError:
    error = future.exception()
    return error if isinstance(error, RequestError) else future.result()
