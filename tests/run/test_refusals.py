"""Who is refused is named, as far as the system remembers him."""

import socket
import sys

import pytest

from isthmus.run.refusals import closed_addresses

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's tables")


@pytest.mark.parametrize(
    ("family", "here", "there", "named"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.9", "127.0.0.9"),
        (socket.AF_INET6, "::1", "::1", "::1"),
        (socket.AF_INET6, "::", "::ffff:127.0.0.8", "127.0.0.8"),
    ],
)
def test_who_was_turned_away_is_named_and_who_is_connected_is_not(family, here, there, named):
    with socket.socket(family) as server:
        try:
            server.bind((here, 0))
        except OSError:
            pytest.skip("this machine has no such address")
        server.listen()
        port = server.getsockname()[1]
        with socket.socket(family) as near:
            near.bind((there, 0))
            near.connect(("::ffff:127.0.0.1" if there.startswith("::ffff") else here, port))
            far, _ = server.accept()
            assert named not in closed_addresses()
            far.close()
            assert named in closed_addresses()
    assert named not in closed_addresses()  # it listens no more
