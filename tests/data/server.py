"""A file server on loopback that can be told to misbehave."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass(kw_only=True)
class Server:
    """What is served at /file, and how.

    Attributes:
        data: The file.
        stop_after: How many bytes an answer may have before the connection breaks.
        ranges: Whether a Range is honoured; the whole file is sent where it is not.
        asked: The Range of each request so far, or None.
        url: Where; it leads to /file by a redirection, as at the publisher's.
    """

    data: bytes
    stop_after: int | None = None
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(data: bytes) -> Iterator[Server]:
    """Serve until the block ends."""
    state = Server(data=data)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/file")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path != "/file":
                self.send_error(404)
                return
            asked = self.headers.get("Range")
            state.asked.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            start = start if state.ranges else 0
            self.send_response(206 if start else 200)
            if start:
                last, total = len(state.data) - 1, len(state.data)
                self.send_header("Content-Range", f"bytes {start}-{last}/{total}")
            self.send_header("Content-Length", str(len(state.data) - start))
            self.end_headers()
            self.wfile.write(state.data[start:][: state.stop_after])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}/moved"
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
