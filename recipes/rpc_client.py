# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Ask part_6/rpc_server.py for Fibonacci numbers, from several threads over one connection.

    python recipes/rpc_client.py 30
    python recipes/rpc_client.py --timeout 5 30 5 12

All numbers are asked for at once. The class FibonacciRpcClient is the part to copy.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import uuid
import weakref
from argparse import ArgumentParser, RawTextHelpFormatter
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelWrongStateError
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
LOGGER = logging.getLogger("rpc_client")
QUEUE = "rpc_queue"
DAY = 86_400  # seconds
MOST_DIGITS = 4300  # that Python reads as an integer, unless told otherwise


class RpcError(Exception):
    """The call failed. The text is the server's own, or says what is wrong with its answer."""


class Request(NamedTuple):
    """A request that was not sent yet, and until when its caller waits."""

    correlation_id: str
    body: bytes
    deadline: float


class FibonacciRpcClient:
    """A client of rpc_server.py for all threads of a program. One of its own holds the connection.

    A call opens the connection, if there is none or it was lost. After a fork the client begins
    anew in the new process.
    """

    def __init__(self, parameters: pika.URLParameters) -> None:
        if parameters.blocked_connection_timeout is None:
            parameters.blocked_connection_timeout = 30  # seconds; then calls fail at once
        self._parameters = parameters
        self._begin()
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            begin = weakref.WeakMethod(self._begin)
            os.register_at_fork(after_in_child=lambda: (method := begin()) and method())

    def _begin(self) -> None:
        self._lock = threading.Lock()  # guards all of these
        self._answers: dict[str, Future[int]] = {}  # of calls under way, by correlation id
        self._requests: deque[Request] = deque()  # not sent yet
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
        """Return the n-th Fibonacci number, as the server says within `timeout` seconds.

        Raises:
            RpcError: The server says that it cannot, there is no queue to reach it by, or its
                answer is no number.
            TimeoutError: No server answered in time.
            AMQPError, OSError: There is no connection, or it was lost before the answer came.
        """
        if not timeout <= DAY:  # neither is nan
            raise ValueError(f"a timeout of {timeout} s: a day is the longest")
        request = Request(str(uuid.uuid4()), str(n).encode(), time.monotonic() + timeout)
        answer: Future[int] = Future()
        with self._lock:
            if self._closed:
                raise RpcError("this client is closed")
            self._answers[request.correlation_id] = answer
            self._requests.append(request)
            if not self._thread:
                self._thread = threading.Thread(target=self._run, name="rpc_client", daemon=True)
                self._thread.start()
            elif self._channel:
                self._wake(self._send)
        try:
            return answer.result(timeout)
        except TimeoutError:
            if answer.done():  # it is the connection's
                raise
            raise TimeoutError("no answer in time: is rpc_server.py running, or busy?") from None
        finally:
            self._answers.pop(request.correlation_id, None)  # what comes from now on is late

    def _wake(self, callback: Callable[[], None]) -> None:
        assert self._channel
        with contextlib.suppress(AMQPError):  # the connection just broke, as _run will tell
            self._channel.connection.add_callback_threadsafe(callback)

    def _run(self) -> None:
        error: Exception = ChannelWrongStateError("closed, or the callback queue was deleted")
        try:
            with pika.BlockingConnection(self._parameters) as connection:
                channel = connection.channel()
                channel.add_on_return_callback(self._on_return)
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
            LOGGER.warning("Connection lost: %r", error)
        with self._lock:
            self._thread = self._channel = None
            self._requests.clear()
            answers, self._answers = self._answers, {}
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
                    mandatory=True,  # without a queue the request comes back, to _on_return
                )

    def _on_answer(
        self, _: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        # A late, second or unknown answer finds nobody who waits for it.
        if answer := self._answers.pop(properties.correlation_id, None):
            if properties.type == "error":
                answer.set_exception(RpcError(body.decode(errors="replace")))
            elif body.isdigit() and len(body) <= MOST_DIGITS:
                answer.set_result(int(body))
            else:
                answer.set_exception(RpcError(f"the answer is no number: {body[:20]!r}"))

    def _on_return(
        self, _: BlockingChannel, method: Basic.Return, properties: BasicProperties, body: bytes
    ) -> None:
        if answer := self._answers.pop(properties.correlation_id, None):
            answer.set_exception(RpcError(f"there is no queue {QUEUE!r}: start rpc_server.py"))


def ask(parameters: pika.URLParameters, numbers: list[int], timeout: float) -> None:
    """Ask for all the numbers at once, and print them in order."""
    with FibonacciRpcClient(parameters) as client, ThreadPoolExecutor(max_workers=8) as threads:
        results = threads.map(lambda n: client.call(n, timeout), numbers)
        for n, result in zip(numbers, results, strict=True):
            print(f" [.] fib({n}) = {result}")


def main() -> None:
    """Run from the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, default=[30], metavar="N", help="of fib(N)")
    parser.add_argument("--timeout", type=float, default=10, help="seconds to wait (default: 10)")
    arguments = parser.parse_args()
    ask(pika.URLParameters(RABBITMQ_URL), arguments.numbers, arguments.timeout)


if __name__ == "__main__":
    main()
