# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Send each line of standard input as a message; say how many RabbitMQ has confirmed.

Run it: seq 100000 | python recipes/publisher.py
or:     seq 100000 | python recipes/publisher.py --queue other
"""

import copy
import logging
import os
import re
import signal
import socket
import sys
import threading
import uuid
import weakref
from argparse import ArgumentParser, RawTextHelpFormatter
from collections import deque
from concurrent.futures import Future
from itertools import takewhile
from typing import Any, NamedTuple, Self

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
CLOSED_BY_BROKER = (ChannelClosedByBroker, ConnectionClosedByBroker)
CONNECTION_FORCED = 320  # RabbitMQ's code when it stops, or is told to close a connection


class PublishError(Exception):
    """The message was not taken, or nobody knows whether it was. The text says why."""


class Message(NamedTuple):
    """A message that is not confirmed yet, and the future that its publisher got for it."""

    body: bytes
    properties: BasicProperties
    future: Future[None]


class Publisher:
    """Publishes to one queue from any thread. A thread of its own holds the connection.

    When the connection breaks it makes a new one, and sends again what was not confirmed. That may
    so arrive twice, but with the same `message_id`. After a fork it begins anew in the new process.
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
            begin = weakref.WeakMethod(self._begin)
            os.register_at_fork(after_in_child=lambda: (method := begin()) and method())

    def _begin(self) -> None:
        self._changed = threading.Condition()  # guards the next four, and tells of changes
        self._unsettled = 0  # how many futures are not done
        self._waiting: deque[Message] = deque()  # to be sent, or sent again
        self._connection: pika.SelectConnection | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        # All that follows is used in this thread alone.
        self._channel: Channel | None = None  # while messages can be sent on it
        self._unconfirmed: dict[int, Message] = {}  # by delivery tag, the oldest first
        self._returned: dict[str | None, PublishError] = {}  # by message id
        self._suspects = 0  # how many messages at the head of the queue go one at a time
        self._pause = 1  # seconds before it connects again

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def publish(
        self, body: bytes, properties: BasicProperties | None = None, timeout: float = 30
    ) -> Future[None]:
        """Send a message, persistent unless its properties say otherwise; do not wait for RabbitMQ.

        The future is done when RabbitMQ has confirmed the message. It fails with a PublishError if
        RabbitMQ rejected or returned it, and cannot be cancelled.

        Raises:
            TimeoutError: `in_flight` messages were unconfirmed, and still were after `timeout` s.
        """
        properties = copy.copy(properties) if properties else BasicProperties()
        properties.delivery_mode = properties.delivery_mode or pika.DeliveryMode.Persistent.value
        properties.message_id = properties.message_id or str(uuid.uuid4())
        message = Message(body, properties, Future())
        message.future.set_running_or_notify_cancel()
        with self._changed:
            if not self._changed.wait_for(self._may_publish, timeout):
                raise TimeoutError(f"no confirm of {self._in_flight} messages within {timeout} s")
            if self._closed:
                raise PublishError("this publisher is closed")
            self._unsettled += 1
            self._waiting.append(message)
            if not self._thread.ident:
                self._thread.start()
            elif self._connection and len(self._waiting) == 1:  # if more, _send is on its way
                self._connection.ioloop.add_callback_threadsafe(self._send)
        return message.future

    def _may_publish(self) -> bool:
        # A future's callback runs in the thread that makes room. If it waited, nobody would.
        own = threading.current_thread() is self._thread
        return own or self._closed or self._unsettled < self._in_flight

    def close(self, timeout: float = 30) -> None:
        """Wait up to `timeout` seconds for what is in flight, then close. The rest fails."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unsettled, timeout)
            self._closed = True
            self._changed.notify_all()
            if self._connection:
                self._connection.ioloop.add_callback_threadsafe(self._stop)
        if self._thread.ident:
            self._thread.join(timeout=1)  # it may take longer, if RabbitMQ no longer answers

    def _stop(self) -> None:
        self._fail_the_rest()
        assert self._connection
        self._connection.close()

    def _fail_the_rest(self) -> None:
        rest = [*self._unconfirmed.values(), *self._waiting]
        self._unconfirmed.clear()
        self._waiting.clear()
        self._settle(rest, PublishError("closed before RabbitMQ confirmed it"))

    def _run(self) -> None:
        while not self._closed:
            reason = self._connect()
            unconfirmed = list(self._unconfirmed.values())
            self._channel, self._unconfirmed, self._returned = None, {}, {}
            if isinstance(reason, CLOSED_BY_BROKER) and reason.reply_code != CONNECTION_FORCED:
                # RabbitMQ refused one of these, and says why but not which: so send them singly.
                if len(unconfirmed) == 1:
                    self._settle([unconfirmed.pop()], PublishError(reason.reply_text))
                self._suspects += len(unconfirmed)
            self._waiting.extendleft(reversed(unconfirmed))
            with self._changed:
                if not self._closed:
                    LOGGER.warning("Connection lost: %r. Next try in %s s", reason, self._pause)
                    self._changed.wait_for(lambda: self._closed, self._pause)
                    self._pause = min(2 * self._pause, 5)
        self._fail_the_rest()

    def _connect(self) -> BaseException | None:
        # Connect, and send until the connection ends; return why it did.
        self._reason: BaseException | None = None
        try:
            with self._changed:
                if self._closed:
                    return None
                self._connection = pika.SelectConnection(
                    parameters=self._parameters,
                    on_open_callback=self._on_connection,
                    on_open_error_callback=self._on_connection_closed,
                    on_close_callback=self._on_connection_closed,
                )
            try:
                self._connection.ioloop.start()
            finally:
                self._connection.ioloop.close()
        except Exception as error:  # pika failed, as over a returned message that it cannot decode
            return error
        return self._reason

    def _on_connection(self, connection: Connection) -> None:
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Channel) -> None:
        def on_confirming(_: Method[Any]) -> None:
            self._channel, self._tag = channel, 0
            self._send()

        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=on_confirming)

    def _on_channel_closed(self, channel: Channel, reason: Exception) -> None:
        self._channel, self._reason = None, reason
        if channel.connection.is_open:
            channel.connection.close()

    def _on_connection_closed(self, _: Connection, reason: BaseException) -> None:
        self._reason = self._reason or reason  # the channel's comes first
        assert self._connection
        self._connection.ioloop.stop()

    def _send(self) -> None:
        while self._channel and self._waiting and not (self._suspects and self._unconfirmed):
            message = self._waiting.popleft()
            try:
                self._channel.basic_publish(
                    exchange="",
                    routing_key=self._queue,
                    body=message.body,
                    properties=message.properties,
                    mandatory=True,  # come back, rather than vanish, if the queue is gone
                )
            except Exception as error:  # pika cannot encode it
                self._settle([message], error)
            else:
                self._tag += 1
                self._unconfirmed[self._tag] = message

    def _on_return(
        self, _: Channel, method: Basic.Return, properties: BasicProperties, body: bytes
    ) -> None:
        why = f"RabbitMQ returned it ({method.reply_text}): is there no queue {self._queue!r}?"
        self._returned[properties.message_id] = PublishError(why)  # its confirm comes next

    def _on_confirm(self, frame: Method[Any]) -> None:
        method, error = frame.method, None
        tags = [method.delivery_tag]
        if method.multiple:  # and all before it
            tags = list(takewhile(method.delivery_tag.__ge__, self._unconfirmed))
        if isinstance(method, Basic.Nack):
            error = PublishError("RabbitMQ rejected it: is the queue full?")
        self._pause = 1
        confirmed = [self._unconfirmed.pop(tag) for tag in tags if tag in self._unconfirmed]
        self._settle(confirmed, error)
        self._send()

    def _settle(self, messages: list[Message], error: Exception | None = None) -> None:
        with self._changed:
            self._unsettled -= len(messages)
            self._changed.notify_all()
        self._suspects = max(0, self._suspects - len(messages))
        for message in messages:
            if why := self._returned.pop(message.properties.message_id, error):
                message.future.set_exception(why)
            else:
                message.future.set_result(None)


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
        future = publisher.publish(line.rstrip(b"\r\n"), timeout=timeout)
        future.add_done_callback(on_done)
    publisher.close(timeout)
    print(f" [x] Sent {confirmed} messages")


# The rest is the command line: the same in all twelve scripts, but for arguments and one call.
def main() -> None:
    """Run from a terminal: end at once when told to, and say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--queue", default="jobs", help="where to (default: jobs)")
    parser.add_argument(
        "--timeout", type=float, default=30, help="seconds to wait for RabbitMQ (default: 30)"
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
