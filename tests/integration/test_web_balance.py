"""Connections that stay open are shared out evenly over the web workers, and no worker is waited for."""

import os
import signal
import socket
from collections.abc import Iterator

import psutil
import pytest

from iiot.config import Settings
from tests.live import WebServer
from tests.services import eventually


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[WebServer]:
    """Gunicorn with two workers."""
    with WebServer() as running:
        yield running


def workers(server: WebServer) -> list[psutil.Process]:
    """The processes that serve."""
    assert server.popen is not None
    return psutil.Process(server.popen.pid).children()


def held(server: WebServer) -> list[int]:
    """How many connections to its port each worker holds."""
    return [
        sum(1 for each in worker.net_connections("tcp") if each.laddr.port == server.port and each.raddr)
        for worker in workers(server)
    ]


def visitor(server: WebServer) -> socket.socket:
    """A connection that has been answered once and stays open."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
    return connection


def test_connections_are_shared_out_evenly(server: WebServer) -> None:
    crowd = [visitor(server)]
    try:
        # Until the second worker has loaded the portal, the first one takes all.
        eventually(lambda: crowd.append(visitor(server)) or (len(held(server)) == 2 and min(held(server)) > 0), 30)
        crowd += [visitor(server) for _ in range(len(crowd) + 20)]
        assert max(held(server)) - min(held(server)) <= 2
    finally:
        for connection in crowd:
            connection.close()


def test_a_worker_that_stands_still_is_not_waited_for_and_a_new_one_is_given_its_share(server: WebServer) -> None:
    eventually(lambda: len(workers(server)) == 2)
    still, other = workers(server)
    crowd = [visitor(server)]
    still.send_signal(signal.SIGSTOP)
    crowd += [visitor(server) for _ in range(5)]
    os.kill(still.pid, signal.SIGKILL)
    eventually(lambda: len(workers(server)) == 2 and still.pid not in [each.pid for each in workers(server)], 20)
    # The supervisor may be between two looks: then one of the two is not listed for an instant.
    newcomer = eventually(
        lambda: next((each for each in workers(server) if each.pid not in (still.pid, other.pid)), None), 20
    )
    assert newcomer is not None
    # It serves once it has loaded the portal.
    eventually(lambda: crowd.append(visitor(server)) or any(each.raddr for each in newcomer.net_connections("tcp")), 20)
    for connection in crowd:
        connection.close()
