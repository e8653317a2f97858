# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Send each line of standard input as a message; say how many RabbitMQ has confirmed.

Run it: seq 100000 | python recipes/publisher.py
or:     seq 100000 | python recipes/publisher.py --queue other
"""

import contextlib
import copy
import logging
import os
import re
import signal
import socket
import sys
import threading
import uuid
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Iterable
from concurrent.futures import Future
from itertools import takewhile
from typing import Any

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.channel import Channel
from pika.connection import Connection
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker
from pika.frame import Method
from pika.spec import Basic, BasicProperties
from pika.tcp_socket_opts import set_sock_opts

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
LOGGER = logging.getLogger("publisher")
CONNECTION_FORCED = 320  # RabbitMQ's code when it stops, or is told to close a connection


class PublishError(Exception):
    """The message was not taken, or nobody knows whether it was. The text says why."""


Message = tuple[bytes, BasicProperties, Future[None]]  # and the future that its publisher got


class Publisher(contextlib.AbstractContextManager["Publisher"]):
    """Publishes to one queue from any thread. Make one for the whole program.

    A thread of its own holds the connection. If that is lost, it makes a new one and sends again
    what was not confirmed, which may so arrive twice. After a fork, the child makes its own.
    """

    def __init__(
        self, parameters: pika.URLParameters, queue: str = "jobs", in_flight: int = 1000
    ) -> None:
        """Declare the queue, durable, and raise pika's error if that fails."""
        with pika.BlockingConnection(parameters) as connection, connection.channel() as channel:
            channel.queue_declare(queue=queue, durable=True)
        self._parameters, self._queue, self._in_flight = parameters, queue, in_flight
        self._begin()
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._changed = threading.Condition()  # guards the next two lines, and tells of changes
        self._messages: dict[int, Message] = {}  # not confirmed, by delivery tag, the oldest first
        self._last, self._closed = 0, False  # the tag of the newest
        self._sent = 0  # the tag of the last one that was sent
        self._connection: pika.SelectConnection | None = None
        self._channel: Channel | None = None  # while messages can be sent on it
        self._reason: BaseException | None = None  # why the connection was lost
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def publish(
        self, body: bytes, properties: BasicProperties | None = None, timeout: float = 30
    ) -> Future[None]:
        """Send a message, persistent unless its properties say otherwise; do not wait for RabbitMQ.

        The future is done when RabbitMQ has confirmed the message. It fails with a PublishError if
        RabbitMQ rejected or returned it, and cannot be cancelled.

        Raises:
            TimeoutError: `in_flight` messages were unconfirmed, and still were after `timeout` s.
        """
        properties = copy.copy(properties or BasicProperties())
        properties.delivery_mode = properties.delivery_mode or pika.DeliveryMode.Persistent.value
        properties.message_id = properties.message_id or str(uuid.uuid4())
        _ = memoryview(body), properties.encode()  # fails here if pika could not send it
        future = Future[None]()
        future.set_running_or_notify_cancel()
        own = threading.current_thread() is self._thread  # which makes room, so it must not wait
        with self._changed:
            if not self._changed.wait_for(
                lambda: own or self._closed or len(self._messages) < self._in_flight, timeout
            ):
                raise TimeoutError(f"no confirm of {self._in_flight} messages within {timeout} s")
            if self._closed:
                raise PublishError("this publisher is closed")
            self._last += 1
            self._messages[self._last] = body, properties, future
            if not self._thread.ident:
                self._thread.start()
            elif self._connection and self._last == self._sent + 1:  # if more, _send is on its way
                self._connection.ioloop.add_callback_threadsafe(self._send)
        return future

    def close(self, timeout: float = 30) -> None:
        """Wait up to `timeout` seconds for what is in flight, then close. The rest fails."""
        with self._changed:
            self._changed.wait_for(lambda: not self._messages, timeout)
            self._closed = True
            if self._connection:
                self._connection.ioloop.add_callback_threadsafe(self._connection.close)
        self._settle(self._messages, PublishError("closed before RabbitMQ confirmed it"))
        if self._thread.ident:
            self._thread.join(timeout=1)  # it may take longer, if RabbitMQ no longer answers

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, tags: Iterable[int], error: Exception | None = None) -> None:
        with self._changed:
            settled = [self._messages.pop(tag) for tag in list(tags) if tag in self._messages]
            self._changed.notify_all()
        for _, _, future in settled:
            if error:
                future.set_exception(error)
            else:
                future.set_result(None)

    def _run(self) -> None:
        self._pause = 1  # seconds before it connects again
        while True:
            try:
                with self._changed:
                    if self._closed:
                        return
                    self._connection = pika.SelectConnection(
                        parameters=self._parameters,
                        on_open_callback=self._on_connection,
                        on_open_error_callback=self._on_connection_closed,
                        on_close_callback=self._on_connection_closed,
                    )
                with contextlib.closing(self._connection.ioloop) as ioloop:
                    ioloop.start()
            except Exception as error:  # in pika, as over a returned message that it cannot decode
                self._channel, self._reason = None, error
                self._settle(self._messages, error)
            with self._changed:
                if not self._closed:
                    LOGGER.warning("Connection lost: %r. Trying again", self._reason)
                    self._changed.wait_for(lambda: self._closed, self._pause)
            self._pause = min(2 * self._pause, 5)

    def _on_connection(self, connection: Connection) -> None:
        connection.channel(on_open_callback=self._on_channel)

    def _on_connection_closed(self, _: Connection, reason: BaseException) -> None:
        assert self._connection
        self._reason = reason
        self._connection.ioloop.stop()

    def _on_channel(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm)
        with self._changed:  # the messages of a channel have the tags 1, 2, 3, …
            self._messages = dict(enumerate(self._messages.values(), start=1))
            self._last, self._sent, self._channel = len(self._messages), 0, channel
        self._send()

    def _on_channel_closed(self, channel: Channel, reason: Exception) -> None:
        self._channel = None
        by_broker = isinstance(reason, ChannelClosedByBroker | ConnectionClosedByBroker)
        if by_broker and reason.args[0] != CONNECTION_FORCED:
            # RabbitMQ refuses one of those in flight, and does not say which. If they were all sent
            # again, that one would end each channel.
            sent = [tag for tag in list(self._messages) if tag <= self._sent]
            self._settle(sent, PublishError(f"this one or one sent with it is refused: {reason}"))
        if channel.connection.is_open:
            self._on_connection(channel.connection)

    def _send(self) -> None:
        while self._channel and (message := self._messages.get(self._sent + 1)):
            self._sent += 1
            self._channel.basic_publish(
                exchange="",
                routing_key=self._queue,
                body=message[0],
                properties=message[1],
                mandatory=True,  # come back, rather than vanish, if the queue is gone
            )

    def _on_return(
        self, _: Channel, method: Basic.Return, properties: BasicProperties, body: bytes
    ) -> None:
        why = f"RabbitMQ returned it ({method.reply_text}): is there no queue {self._queue!r}?"
        for tag, message in list(self._messages.items()):
            if message[1].message_id == properties.message_id:
                self._settle([tag], PublishError(why))  # its confirm comes next, and finds it gone
                break

    def _on_confirm(self, frame: Method[Any]) -> None:
        self._pause, method, tag = 1, frame.method, frame.method.delivery_tag
        tags = takewhile(tag.__ge__, list(self._messages)) if method.multiple else [tag]
        full = PublishError("RabbitMQ rejected it: is the queue full?")
        self._settle(tags, full if isinstance(method, Basic.Nack) else None)


def publish_lines(parameters: pika.URLParameters, queue: str, timeout: float) -> None:
    """Publish each line of standard input, and print how many RabbitMQ has confirmed."""
    logging.basicConfig(format=" [!] %(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it would say, we say in one line
    confirmed = 0

    def on_done(future: Future[None]) -> None:
        nonlocal confirmed
        if error := future.exception():
            print(f" [!] {error!r}, after {confirmed} confirmed messages", file=sys.stderr)
            os._exit(1)
        confirmed += 1
        if confirmed % 1000 == 0 and sys.stderr.isatty():
            print(f" [*] {confirmed} confirmed", end="\r", file=sys.stderr, flush=True)

    publisher = Publisher(parameters, queue)
    for line in sys.stdin.buffer:
        publisher.publish(line.rstrip(b"\r\n"), timeout=timeout).add_done_callback(on_done)
    publisher.close(timeout)
    print(f" [x] Sent {confirmed} messages")


# The rest is the command line: the same in all three recipes, but for arguments and one call.
def main() -> None:
    """Run from a terminal: end at once when told to, and say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--queue", default="jobs", help="where to (default: jobs)")
    parser.add_argument(
        "--timeout", type=float, default=30, help="for RabbitMQ, in s (default: 30)"
    )
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    try:  # pika takes localhost if there is no host, and its options may raise anything
        [_] = re.findall(rb"^amqps?://(?:[^/?#]*@)?+[\w.[][!-~]*$", RABBITMQ_URL.encode("ascii"))
        parameters = pika.URLParameters(RABBITMQ_URL)
        parameters.host.encode("idna")
        with socket.socket() as trial:
            set_sock_opts(parameters.tcp_options, trial)
    except Exception:
        sys.exit(" [!] RABBITMQ_URL is no address. Write amqp://user:password@host:5672/%2F")
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or 30  # seconds
    try:
        publish_lines(parameters, arguments.queue, arguments.timeout)
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        if getattr(error, "filename", None):  # a file of yours, not the network or the output
            raise
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # at once: sys.exit would wait for other threads


if __name__ == "__main__":
    main()
