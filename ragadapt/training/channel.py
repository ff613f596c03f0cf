"""A connection from every other process to the first: who has arrived, who failed, who is gone.

Collectives of gloo and NCCL wait for as long as their timeout, whatever became of the process that they wait for. So
long waits are done here: the system closes a process's connections however it ends (an exception, a signal, a kill),
which the others see at once, and a process that is busy, even in a call that never lets another thread run, is not
taken for a dead one.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypedDict

from ragadapt.errors import TrainingFailed

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 60.0
_ARRIVED = b"arrived\n"
_SHOWN = 2000  # characters of another process's error


class Address(TypedDict):
    """Where the first process listens, and what a caller must know."""

    hosts: list[str]
    port: int
    token: str


Broadcast = Callable[[Address | None], Address | None]


class Channel:
    """The connections of one process: to all others in the first, to the first in each of them."""

    def __init__(self, index: int, peers: Mapping[int, socket.socket]) -> None:
        self.index = index
        self._peers = dict(peers)
        self._meetings = 0
        self._arrivals = dict.fromkeys(peers, 0)
        self._failure: str | None = None
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        for peer, connection in self._peers.items():
            _keep_alive(connection)
            threading.Thread(target=self._listen, args=(peer, connection), name=f"channel-{peer}", daemon=True).start()

    @classmethod
    def open(cls, index: int, count: int, broadcast: Broadcast) -> Channel:
        """Connect `count` processes. broadcast(value): what the first one says, in all of them; called once.

        Raises TrainingFailed where one cannot be reached.
        """
        if index == 0:
            return cls(0, _accept(count, broadcast))
        return cls(index, {0: _connect(index, broadcast)})

    def check(self, seconds: float = 0.0) -> None:
        """Raises TrainingFailed where another process failed or is gone, or within these seconds will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None, seconds)
        if self._failure is not None:
            raise TrainingFailed(
                f"{self._failure} Process {self.index} ends with it. Mend that and start all of them again with the "
                "same command: finished stages are kept."
            )

    def meet(self) -> None:
        """Return when all processes have called this as often, however long that takes. Raises as `check`."""
        self._meetings += 1
        if self.index != 0:
            self._send(_ARRIVED)
        with self._changed:
            # Arrivals first: who has come to the last meeting may go.
            while not all(number >= self._meetings for number in self._arrivals.values()):
                self.check()
                self._changed.wait()
        if self.index == 0:
            self._send(_ARRIVED)

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process cannot go on."""
        text = " ".join(str(error).split())[:_SHOWN]
        reason = f"Process {self.index} failed: {type(error).__name__}{f': {text}' if text else ''}"
        self._learn(reason if reason.endswith((".", "!", "?")) else reason + ".")

    def _learn(self, reason: str, source: int | None = None) -> None:
        """Note the first failure, and pass it on to all but who told it."""
        with self._changed:
            if self._failure is not None:
                return
            self._failure = reason
            self._changed.notify_all()
        self._send(b"failed " + json.dumps(reason).encode() + b"\n", but=source)

    def _send(self, line: bytes, but: int | None = None) -> None:
        with self._sending:
            for peer, connection in self._peers.items():
                if peer != but:
                    try:
                        connection.sendall(line)
                    except OSError as error:  # its listener says so
                        log.debug("process %d cannot be told: %s", peer, error)

    def _listen(self, peer: int, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as lines:
                for line in lines:
                    if line == _ARRIVED:
                        with self._changed:
                            self._arrivals[peer] += 1
                            self._changed.notify_all()
                    else:
                        self._learn(json.loads(line.partition(b" ")[2]), peer)
        except (OSError, ValueError) as error:
            log.debug("the connection to process %d ended: %s", peer, error)
        self._learn(f"Process {peer} is gone: it was killed, or exited without a word; its own output may say why.")


def _accept(count: int, broadcast: Broadcast) -> dict[int, socket.socket]:
    """Index → connection of all other processes, who learn where to call and prove that they were told."""
    alone = os.environ.get("LOCAL_WORLD_SIZE") == str(count)  # all of them on this machine
    token = secrets.token_hex(16)
    if alone:
        server = socket.create_server(("127.0.0.1", 0))
    elif socket.has_dualstack_ipv6():
        server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        server = socket.create_server(("", 0))
    peers: dict[int, socket.socket] = {}
    with server:
        named = ["127.0.0.1"] if alone else [os.environ.get("MASTER_ADDR"), socket.gethostname()]
        hosts = list(dict.fromkeys(name for name in named if name))
        broadcast({"hosts": hosts, "port": server.getsockname()[1], "token": token})
        deadline = time.monotonic() + _CONNECT_SECONDS
        while len(peers) < count - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
                connection.settimeout(5)
                said, _, index = _read_line(connection).partition(" ")
            except TimeoutError as error:
                if time.monotonic() < deadline:
                    continue
                missing = sorted(set(range(1, count)) - peers.keys())
                raise TrainingFailed(
                    f"Process {missing[0]} of {count} did not call the first one on {' or '.join(hosts)} within "
                    f"{_CONNECT_SECONDS:.0f} seconds. Let the machines reach each other on all ports, as gloo and NCCL "
                    "need too, or start fewer processes."
                ) from error
            except (OSError, ValueError):
                continue
            if hmac.compare_digest(said.encode(), token.encode()) and index.isdecimal():
                connection.settimeout(None)
                connection.sendall(b"welcome\n")
                peers[int(index)] = connection
            else:
                connection.close()
    return peers


def _connect(index: int, broadcast: Broadcast) -> socket.socket:
    """The connection to the first process."""
    address = broadcast(None)
    assert address is not None
    deadline, problem = time.monotonic() + _CONNECT_SECONDS, ""
    while time.monotonic() < deadline:
        for host in address["hosts"]:
            try:
                connection = socket.create_connection((host, address["port"]), timeout=5)
                connection.sendall(f"{address['token']} {index}\n".encode())
                if _read_line(connection) == "welcome":
                    connection.settimeout(None)
                    return connection
                connection.close()
            except (OSError, ValueError) as error:
                problem = str(error)
        time.sleep(0.2)
    raise TrainingFailed(
        f"Process {index} cannot reach the first one at {' or '.join(address['hosts'])}, port {address['port']} "
        f"({problem}). "
        "Let the machines reach each other on all ports, as gloo and NCCL need too."
    )


def _read_line(connection: socket.socket) -> str:
    """A short line, read byte by byte: what follows it belongs to another reader."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(line) > 100:
            raise ValueError("the connection ended")
        line += byte
    return line.decode("ascii").strip()


def _keep_alive(connection: socket.socket) -> None:
    """Let the system ask a silent machine whether it is still there, about half a minute until it is given up."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
