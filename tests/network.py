"""A network between scripts and a broker, on loopback, that can be cut and can fall silent."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Literal, Self
from urllib.parse import urlsplit

#: What becomes of a connection: it reaches the broker; it is accepted, and nothing comes back; or
#: it is reset once the client has said something.
Mode = Literal["open", "silent", "reset"]


class Network:
    """A proxy before a broker. What it is told to do holds for connections that there are, too."""

    def __init__(self, url: str, mode: Mode = "open") -> None:
        """Prepare the way to the broker at an AMQP address."""
        parts = urlsplit(url)
        self._broker = parts.hostname or "", parts.port or 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        #: The address that leads to the broker by this way.
        self.url = url.replace(parts.netloc, f"guest:guest@localhost:{port}")
        self.mode = mode
        #: How many connections were made.
        self.accepted = 0
        #: What the network does once the broker has sent these bytes, and how often it did.
        self.watched = b""
        self.then: Literal["cut", "silent", "nothing"] = "nothing"
        self.seen = 0
        self._ends: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()

    @property
    def connections(self) -> int:
        """How many ends of connections there are, on either side."""
        return len(self._ends)

    def cut(self) -> None:
        """End all connections that there are."""
        for end in list(self._ends):
            self._close(end)

    def watch(self, method: type, then: Literal["cut", "silent", "nothing"] = "nothing") -> None:
        """Count how often the broker sends that method of AMQP, and cut or fall silent after it."""
        # By these bytes a frame says which method it is.
        self.watched = struct.pack(">I", method.INDEX)  # type: ignore[attr-defined]
        self.then, self.seen = then, 0

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self.mode == "reset":
                client.recv(1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                continue
            self._ends.add(client)
            if self.mode == "open":
                broker = socket.create_connection(self._broker)
                self._ends.add(broker)
                self._start(self._carry, client, broker, b"")
                self._start(self._carry, broker, client, b"the broker's")

    def _carry(self, source: socket.socket, sink: socket.socket, whose: bytes) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if self.mode == "silent" and whose:
                    continue
                sink.sendall(data)
                if whose and self.watched and self.watched in data:
                    self.seen += 1
                    if self.then == "cut":
                        break
                    if self.then == "silent":
                        self.mode = "silent"
        if self.mode != "silent":  # nor does an end reach the other side
            self._close(source)
            self._close(sink)

    def _close(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
        self._ends.discard(end)
