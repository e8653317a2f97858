# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Send each line of standard input as a message; say how many RabbitMQ has confirmed.

Run it: seq 100000 | python recipes/publisher.py
or:     seq 100000 | python recipes/publisher.py --queue other
"""

import logging
import os
import re
import signal
import sys
import threading
import time
import uuid
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from itertools import takewhile
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"


class PublishError(Exception):
    """RabbitMQ has not taken the message, or nobody knows whether it has. The text says why."""


class Publisher(AbstractContextManager["Publisher"]):
    """Publishes to one queue from any thread. Make one for the whole program.

    A thread of its own has the connection. If that is lost, it makes a new one and sends again
    what was not confirmed, which may so arrive twice. After a fork, the child makes its own.
    """

    def __init__(self, parameters: pika.URLParameters, queue: str, in_flight: int = 1000) -> None:
        """Declare the queue, durable, and raise pika's error if that fails."""
        with pika.BlockingConnection(parameters) as connection:
            connection.channel().queue_declare(queue=queue, durable=True)
        self._parameters, self._queue, self._in_flight = parameters, queue, in_flight
        self._begin()
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        # Guards these. (To enter a Condition takes Python code, which an interrupt may cut short.)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # there is room for more, or none in flight
        self._messages: dict[int, tuple[bytes, BasicProperties, Future[None]]] = {}
        self._settling = False  # while callbacks of futures run, which may publish more
        self._sent, self._closed = 0, False  # the delivery tag of the last one that was sent
        self._pause = 1  # seconds before it connects again
        self._thread: threading.Thread | None = None  # as soon as there is something to publish
        self._ioloop: IOLoop
        self._channel: pika.channel.Channel | None = None  # while messages can be sent on it

    def publish(self, body: bytes, timeout: float = 30, **properties: Any) -> Future[None]:  # noqa: ANN401
        """Hand over a persistent message, and return at once if there is room for it in flight.

        `properties` are those of pika.BasicProperties, such as message_id="17". The future is
        done when RabbitMQ has confirmed the message. If it did not, it fails with a PublishError.
        Call it from any thread, but not from a signal handler: that may interrupt another call.

        Raises:
            TimeoutError: `in_flight` messages were unconfirmed, and still were after `timeout` s.
        """
        ours = {"delivery_mode": 2, "message_id": str(uuid.uuid4())}
        kept = BasicProperties(**{**ours, **properties})
        if properties:  # a copy as pika will send it: it fails here or never, and stays as it is
            kept = BasicProperties().decode(b"".join(kept.encode()))
        message = bytes(memoryview(body)), kept, Future[None]()
        message[2].set_running_or_notify_cancel()  # so nobody can cancel it
        own = threading.current_thread() is self._thread  # which makes room, so it must not wait
        with self._lock:
            if not self._changed.wait_for(
                lambda: own or self._closed or len(self._messages) < self._in_flight, timeout
            ):
                raise TimeoutError(f"no confirm of {self._in_flight} messages within {timeout} s")
            if self._closed:
                raise PublishError("this publisher is closed")
            if not self._thread:
                self._ioloop = IOLoop()
                thread = threading.Thread(target=self._run, name="publisher", daemon=True)
                thread.start()
                self._thread = thread
            # The newest message may be settled already, while older ones still wait.
            tag = 1 + max(self._sent, next(reversed(self._messages), 0))
            if tag == self._sent + 1:  # if others wait to be sent, _send is on its way
                self._ioloop.add_callback_threadsafe(self._send)  # first, for an interrupt may come
            self._messages[tag] = message
        return message[2]

    def close(self, timeout: float = 30) -> None:
        """Wait up to `timeout` seconds for what is in flight, then close. The rest fails."""
        own = threading.current_thread() is self._thread  # a callback's, so it must not wait
        with self._lock:
            self._changed.wait_for(
                lambda: own or self._closed or not (self._messages or self._settling), timeout
            )
            self._closed = True
        if self._thread:
            self._ioloop.add_callback_threadsafe(self._stop)
            if not own:
                self._thread.join(timeout=5)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:  # in the publisher's own thread, as all that follows
        with self._lock:
            if threading.current_thread() is not self._thread:
                return  # publish was interrupted as it started us, and the next one starts another
        try:
            while not self._closed:
                try:
                    pika.SelectConnection(
                        parameters=self._parameters,
                        on_open_callback=self._on_connection,
                        on_open_error_callback=self._on_connection_lost,
                        on_close_callback=self._on_connection_lost,
                        custom_ioloop=self._ioloop,
                    )
                    self._ioloop.start()
                except (
                    Exception
                ):  # such as none to be had of the threads in which pika resolves names
                    logging.getLogger("publisher").exception("Trying again")
                    time.sleep(self._pause)
                    self._ioloop.close()
                    with self._lock:
                        self._ioloop, self._channel = IOLoop(), None
        finally:
            self._closed = True
            self._settle(self._messages, "closed before RabbitMQ confirmed it")
            self._ioloop.close()

    def _stop(self) -> None:
        if self._channel and self._channel.connection.is_open:
            self._channel.connection.close()
        self._ioloop.call_later(0.5, self._ioloop.stop)  # RabbitMQ may be silent

    def _on_connection(self, connection: pika.connection.Connection) -> None:
        connection.channel(on_open_callback=self._on_channel)

    def _on_connection_lost(self, _: object, reason: BaseException) -> None:
        if not self._closed:
            logging.getLogger("publisher").warning("Connection lost: %r. Trying again", reason)
        self._ioloop.call_later(0 if self._closed else self._pause, self._ioloop.stop)
        self._pause = min(2 * self._pause, 5)

    def _on_channel(self, channel: pika.channel.Channel) -> None:
        channel.add_on_close_callback(self._on_channel_lost)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm)
        with self._lock:  # the messages of a channel have the tags 1, 2, 3, …
            self._messages = dict(enumerate(self._messages.values(), start=1))
            self._sent, self._pause, self._channel = 0, 1, channel
        self._send()

    def _on_channel_lost(self, channel: pika.channel.Channel, reason: Exception) -> None:
        self._channel = None
        # With such a code RabbitMQ refuses a message, and does not say which of them. Sent again,
        # it would end the next channel, too.
        if getattr(reason, "reply_code", 0) >= 400:
            self._settle(self._messages, f"this message, or one with it, is refused: {reason}")
        if channel.connection.is_open:
            self._on_connection(channel.connection)

    def _send(self) -> None:
        with self._lock:
            pass  # now the message for which it was called is there
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
        self, _: object, method: Basic.Return, properties: BasicProperties, body: bytes
    ) -> None:
        messages = list(self._messages.items())
        tags = [t for t, m in messages if (m[0], m[1].message_id) == (body, properties.message_id)]
        self._settle(tags[:1], f"RabbitMQ returned it: {method.reply_text}")

    def _on_confirm(self, frame: pika.frame.Method[Any]) -> None:
        tag, rejected = frame.method.delivery_tag, isinstance(frame.method, Basic.Nack)
        tags = takewhile(tag.__ge__, list(self._messages)) if frame.method.multiple else [tag]
        self._settle(tags, "RabbitMQ rejected it: is the queue full?" if rejected else "")

    def _settle(self, tags: Iterable[int], error: str = "") -> None:
        with self._lock:
            settled = [self._messages.pop(tag)[2] for tag in list(tags) if tag in self._messages]
            self._settling = True
            if len(self._messages) <= self._in_flight // 2:  # many at once is faster
                self._changed.notify_all()
        for future in settled:
            try:
                future.set_exception(PublishError(error)) if error else future.set_result(None)
            except BaseException:  # such as sys.exit() in a callback, which ends a thread, not us
                logging.getLogger("publisher").exception("A callback of a message raised")
        with self._lock:
            self._settling = False
            if not self._messages:
                self._changed.notify_all()


def publish_lines(parameters: pika.URLParameters, queue: str, timeout: float) -> None:
    """Publish each line of standard input, and print how many RabbitMQ has confirmed."""
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
        publisher.publish(line.rstrip(b"\r\n"), timeout).add_done_callback(on_done)
    publisher.close(timeout)
    print(f" [x] Sent {confirmed} messages", flush=True)


# The rest is the command line.
def main() -> None:
    """Run from a terminal: read the arguments and the address, say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--queue", default="jobs", help="where to (default: jobs)")
    parser.add_argument("--timeout", type=float, default=30, help="for RabbitMQ (default: 30 s)")
    arguments = parser.parse_args()
    logging.basicConfig(format=" [!] %(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it would say, we say in one line
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    try:  # pika takes localhost if there is no host, and its options may raise anything
        [_] = re.findall(rb"^amqps?://(?:[^/?#]*@)?+[\w.[][!-~]*$", RABBITMQ_URL.encode("ascii"))
        (parameters := pika.URLParameters(RABBITMQ_URL)).host.encode("idna")
        _ = [range(2**31)[option] for option in (parameters.tcp_options or {}).values()]
    except Exception:
        sys.exit(" [!] RABBITMQ_URL is no address. Write amqp://user:password@host:5672/%2F")
    try:
        publish_lines(parameters, arguments.queue, arguments.timeout)
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # at once: sys.exit would wait for other threads


if __name__ == "__main__":
    main()
