# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Ask part_6/rpc_server.py for Fibonacci numbers, each from a thread of its own.

Run it: python recipes/rpc_client.py 30
or:     python recipes/rpc_client.py --timeout 5 30 5 12
"""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
import weakref
from argparse import ArgumentParser, RawTextHelpFormatter
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ChannelWrongStateError
from pika.spec import Basic, BasicProperties
from pika.tcp_socket_opts import set_sock_opts

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
LOGGER = logging.getLogger("rpc_client")
QUEUE = "rpc_queue"


class RpcError(Exception):
    """The call failed: the server says why, there is no queue to reach it by, or it is nonsense."""


class FibonacciRpcClient:
    """Calls part_6/rpc_server.py from any thread. A thread of its own holds the connection.

    A call opens the connection, if there is none or it was lost. After a fork, the client begins
    anew in the new process.
    """

    def __init__(self, parameters: pika.URLParameters) -> None:
        self._parameters = parameters
        self._begin()
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            begin = weakref.WeakMethod(self._begin)
            os.register_at_fork(after_in_child=lambda: (method := begin()) and method())

    def _begin(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._answers: dict[str | None, Future[int]] = {}  # of calls under way, by correlation id
        self._requests: deque[tuple[str, bytes, float]] = deque()  # id, body, deadline: to be sent
        self._thread: threading.Thread | None = None
        self._channel: BlockingChannel | None = None  # while requests can be sent on it
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, in a second at the most. Calls under way fail."""
        with self._lock:
            self._closed, thread = True, self._thread
            if self._channel:
                self._wake(self._channel.stop_consuming)
        if thread:
            thread.join(timeout=1)

    def call(self, n: int, timeout: float = 10) -> int:
        """Return the n-th Fibonacci number, if a server says it within `timeout` seconds.

        Raises:
            RpcError: As above. This call failed; it says nothing about others.
            TimeoutError: No server answered in time.
            AMQPError, OSError: There is no connection, or it was lost. The request may be done.
        """
        if not timeout > 0:
            raise TimeoutError(f"a timeout of {timeout} s leaves no time to answer")
        timeout = min(timeout, 86_400)  # a day: RabbitMQ refuses an expiration that is far away
        correlation_id, answer = str(uuid.uuid4()), Future[int]()
        request = correlation_id, str(n).encode(), time.monotonic() + timeout
        with self._lock:
            if self._closed:
                raise RpcError("this client is closed")
            self._answers[correlation_id] = answer
            self._requests.append(request)
            if not self._thread:
                self._thread = threading.Thread(target=self._run, name="rpc_client", daemon=True)
                self._thread.start()
            elif self._channel and len(self._requests) == 1:  # if more, _send is on its way
                self._wake(self._send)
        try:
            return answer.result(timeout)
        except TimeoutError:
            if answer.done():  # then it was the connection that took too long
                raise
            raise TimeoutError("no answer in time: no server runs, or all are busy") from None
        finally:
            self._answers.pop(correlation_id, None)  # an answer that comes later is ignored

    def _wake(self, callback: Callable[[], None]) -> None:
        assert self._channel
        with contextlib.suppress(AMQPError):  # the connection just broke, as _run will tell
            self._channel.connection.add_callback_threadsafe(callback)

    def _run(self) -> None:
        error: Exception = ChannelWrongStateError("closed, or the callback queue was deleted")
        try:
            with pika.BlockingConnection(self._parameters) as connection:
                channel = connection.channel()
                channel.add_on_return_callback(callback=self._on_answer)
                self._callback_queue = channel.queue_declare(queue="", exclusive=True).method.queue
                channel.basic_consume(
                    queue=self._callback_queue, on_message_callback=self._on_answer, auto_ack=True
                )
                with self._lock:
                    self._channel, closed = channel, self._closed
                if not closed:
                    self._send()
                    channel.start_consuming()
        except Exception as reason:
            error = reason
        with self._lock:
            self._thread = self._channel = None
            self._requests.clear()
            answers, self._answers = self._answers, {}
        if not (answers or self._closed):  # nobody else would say so
            LOGGER.warning("Connection lost: %r. The next call makes a new one", error)
        for answer in answers.values():
            answer.set_exception(error)

    def _send(self) -> None:
        assert self._channel
        while self._requests:
            correlation_id, body, deadline = self._requests.popleft()
            left = int(1000 * (deadline - time.monotonic()))  # ms
            if left > 0:
                self._channel.basic_publish(
                    exchange="",
                    routing_key=QUEUE,
                    body=body,
                    properties=BasicProperties(
                        reply_to=self._callback_queue,
                        correlation_id=correlation_id,
                        expiration=str(left),  # then nobody waits for the answer any longer
                    ),
                    mandatory=True,  # without a queue the request comes back, to _on_answer
                )

    def _on_answer(
        self,
        _: BlockingChannel,
        method: Basic.Deliver | Basic.Return,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        answer = self._answers.pop(properties.correlation_id, None)
        if not answer:  # it is late, or the second, or was never asked for
            return
        if isinstance(method, Basic.Return):
            answer.set_exception(RpcError(f"there is no queue {QUEUE!r}: no server has run yet"))
        elif properties.type == "error":
            answer.set_exception(RpcError(body.decode(errors="replace")))
        elif not body.isdigit() or len(body) > 4300:  # Python reads no longer number
            answer.set_exception(RpcError(f"the answer is no number: {body[:20]!r}"))
        else:
            answer.set_result(int(body))


def ask(parameters: pika.URLParameters, numbers: list[int], timeout: float) -> None:
    """Call for all the numbers from as many threads, and print the answers in order."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it would say, we say in one line
    try:
        with FibonacciRpcClient(parameters) as client, ThreadPoolExecutor(len(numbers)) as threads:
            answers = threads.map(lambda n: client.call(n, timeout), numbers)
            for n, number in zip(numbers, answers, strict=True):
                print(f" [.] fib({n}) = {number}")
    except RpcError as error:
        sys.exit(f" [!] RpcError: {error}")


# The rest is the command line: the same in all twelve scripts, but for arguments and one call.
def main() -> None:
    """Run from a terminal: end at once when told to, and say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, default=[30], metavar="N", help="of fib(N)")
    parser.add_argument("--timeout", type=float, default=10, help="seconds to wait (default: 10)")
    arguments = parser.parse_args()
    if not 0 < arguments.timeout <= 86_400:
        parser.error("--timeout is a number of seconds over 0, and a day at the most")
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
        ask(parameters, arguments.numbers, arguments.timeout)
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        if getattr(error, "filename", None):  # a file of yours, not the network or the output
            raise
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # at once: sys.exit would wait for other threads


if __name__ == "__main__":
    main()
