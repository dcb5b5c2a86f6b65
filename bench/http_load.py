"""HTTP load by hand: keep-alive connections that send one prepared request each and count the answers."""

import heapq
import selectors
import socket
import time
from dataclasses import dataclass, field


@dataclass
class Result:
    """What came back. `latencies` in milliseconds, from the moment the request was due."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    bad: int = 0

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return len(self.latencies) / self.seconds


def request(path: str, token: str | None = None, method: str = "GET", body: bytes = b"") -> bytes:
    """A request, ready to send; `body` is JSON."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return (head + (f"Authorization: Bearer {token}\r\n" if token else "") + "\r\n").encode() + body


class _User:
    def __init__(self, port: int, data: bytes) -> None:
        self.data = data
        self.buffer = b""
        self.due = 0.0
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, due: float) -> None:
        self.due = due
        self.connection.sendall(self.data)

    def receive(self) -> int:
        """The status once the answer is complete, 0 while it is not, -1 when the server hung up."""
        more = self.connection.recv(65536)
        if not more:
            return -1
        self.buffer += more
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return 0
        lower = head.lower()
        place = lower.find(b"content-length:")
        size = int(lower[place + 15 :].split(b"\r\n", 1)[0])
        if len(body) < size:
            return 0
        self.buffer = b""
        return int(head[9:12])


def saturate(port: int, requests: list[bytes], users: int, seconds: float) -> Result:
    """Every user sends its next request as soon as the last was answered."""
    crowd = [_User(port, requests[number % len(requests)]) for number in range(users)]
    result = Result(seconds)
    with selectors.DefaultSelector() as selector:
        now = time.perf_counter()
        end = now + seconds
        for user in crowd:
            selector.register(user.connection, selectors.EVENT_READ, user)
            user.send(now)
        while (now := time.perf_counter()) < end:
            for key, _ in selector.select(end - now):
                user = key.data
                status = user.receive()
                if status:
                    done = time.perf_counter()
                    _note(result, status, done - user.due)
                    user.send(done)
    for user in crowd:
        user.connection.close()
    return result


def pace(port: int, requests: list[bytes], users: int, rate: float, seconds: float) -> Result:
    """`rate` requests a second, spread evenly over the users; the schedule does not wait for slow answers of others."""
    crowd = [_User(port, requests[number % len(requests)]) for number in range(users)]
    result = Result(seconds)
    begun = time.perf_counter()
    plan = [(begun + number / rate, number) for number in range(users)]
    heapq.heapify(plan)
    waiting = 0
    with selectors.DefaultSelector() as selector:
        for user in crowd:
            selector.register(user.connection, selectors.EVENT_READ, user)
        while plan or waiting:
            now = time.perf_counter()
            while plan and plan[0][0] <= now:
                due, number = heapq.heappop(plan)
                crowd[number].send(due)
                waiting += 1
            pause = plan[0][0] - now if plan else 5.0
            ready = selector.select(max(0.0, pause))
            if not ready and not plan:
                break
            for key, _ in ready:
                user = key.data
                status = user.receive()
                if not status:
                    continue
                waiting -= 1
                _note(result, status, time.perf_counter() - user.due)
                following = max(user.due + users / rate, time.perf_counter())
                if following < begun + seconds:
                    heapq.heappush(plan, (following, crowd.index(user)))
    for user in crowd:
        user.connection.close()
    return result


def _note(result: Result, status: int, seconds: float) -> None:
    if status in (200, 201):
        result.latencies.append(seconds * 1000)
    else:
        result.bad += 1
        if status < 0:
            raise ConnectionError("the server hung up")
