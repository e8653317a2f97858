# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Ask part_6/rpc_server.py for Fibonacci numbers, each from a thread of its own.

Run it: python recipes/rpc_client.py 30
or:     python recipes/rpc_client.py --timeout 5 30 5 12
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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
LOGGER = logging.getLogger("rpc_client")
QUEUE = "rpc_queue"
REPLY_TO = "amq.rabbitmq.reply-to"  # RabbitMQ passes answers straight to us, without a queue


class RpcError(Exception):
    """The call failed: the server says why, there is no queue to reach it by, or it is nonsense."""


class FibonacciRpcClient(AbstractContextManager["FibonacciRpcClient"]):
    """Calls part_6/rpc_server.py from any thread. Make one for the whole program.

    A thread of its own has the connection. If there is none, or it was lost, the next call makes
    one. After a fork, the child makes its own.
    """

    def __init__(self, parameters: pika.URLParameters) -> None:
        self._parameters = parameters
        self._begin()
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lock, self._closed = threading.Lock(), False
        self._thread: threading.Thread | None = None  # while it has a connection, or makes one
        self._channel = Future[BlockingChannel]()  # done when requests can be sent on it
        self._answers: dict[str | None, Future[bytes]] = {}  # of calls under way, by correlation id

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
        deadline, body, answer = time.monotonic() + timeout, str(n).encode(), Future[bytes]()
        request = BasicProperties(reply_to=REPLY_TO, correlation_id=str(uuid.uuid4()))
        request.expiration = str(int(1000 * timeout))  # ms: then nobody waits for the answer
        with self._lock:
            if self._closed:
                raise RpcError("this client is closed")
            if not self._thread:
                self._channel, self._answers = Future(), {}
                thread = threading.Thread(target=self._run, name="rpc_client", daemon=True)
                thread.start()  # if that fails, the next call tries it again
                self._thread = thread
            ready, answers = self._channel, self._answers  # those of this connection
        answers[request.correlation_id] = answer
        try:
            channel = ready.result(timeout)
            # Mandatory: without a queue the request comes back, to _take.
            publish = partial(channel.basic_publish, exchange="", routing_key=QUEUE, mandatory=True)
            send = partial(publish, body=body, properties=request)
            channel.connection.add_callback_threadsafe(send)  # which the thread calls
            number = answer.result(deadline - time.monotonic())
        except TimeoutError:
            raise TimeoutError("no answer in time: no server runs, or all are busy") from None
        finally:
            answers.pop(request.correlation_id, None)  # an answer that comes later is ignored
        if not number.isdigit() or len(number) > 4300:  # Python reads no longer number
            raise RpcError(f"the answer is no number: {number[:20]!r}")
        return int(number)

    def close(self) -> None:
        """Close the connection, in a second at the most. Calls under way fail."""
        with self._lock:
            self._closed, thread = True, self._thread
        if thread:
            with suppress(Exception):  # the connection is lost already, or not there yet
                channel = self._channel.result(timeout=0)
                channel.connection.add_callback_threadsafe(channel.stop_consuming)
            thread.join(timeout=1)  # it has woken up from process_data_events

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        with self._lock:
            if threading.current_thread() is not self._thread:
                return  # call was interrupted as it started us, and the next one starts another
        why: Exception = RpcError("this client is closed")
        try:
            with pika.BlockingConnection(self._parameters) as connection:
                channel = connection.channel()
                channel.add_on_return_callback(callback=self._take)
                channel.basic_consume(queue=REPLY_TO, on_message_callback=self._take, auto_ack=True)
                self._channel.set_result(channel)
                if not self._closed:
                    channel.start_consuming()  # until close, or RabbitMQ closes the channel
        except AMQPConnectorException as error:
            why = pika.exceptions.AMQPConnectionError(error)  # which callers expect
        except Exception as error:
            why = error
        with self._lock:
            futures: list[Future[Any]] = [self._channel, *self._answers.values()]
            self._thread = None
        if not (futures[1:] or self._closed):  # nobody else would say so
            LOGGER.warning("Connection lost: %r. The next call makes a new one", why)
        for future in futures:
            if not future.done():
                future.set_exception(why)

    def _take(self, _: object, method: object, properties: BasicProperties, body: bytes) -> None:
        answer = self._answers.pop(properties.correlation_id, None)
        if not answer:
            return  # it is late, or the second, or was never asked for
        if isinstance(method, Basic.Return):  # the request came back
            answer.set_exception(RpcError(f"there is no queue {QUEUE!r}, so no server to answer"))
        elif properties.type == "error":
            answer.set_exception(RpcError(body.decode(errors="replace")))
        else:
            answer.set_result(body)


def ask(parameters: pika.URLParameters, numbers: list[int], timeout: float) -> None:
    """Call for all the numbers from as many threads, and print the answers in order."""
    with FibonacciRpcClient(parameters) as client, ThreadPoolExecutor(len(numbers)) as threads:
        answers = threads.map(lambda n: client.call(n, timeout), numbers)
        for n, number in zip(numbers, answers, strict=True):
            print(f" [.] fib({n}) = {number}", flush=True)


# The rest is the command line.
def main() -> None:
    """Run from a terminal: read the arguments and the address, say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, default=[30], metavar="N", help="of fib(N)")
    parser.add_argument("--timeout", type=float, default=10, help="seconds to wait (default: 10)")
    arguments = parser.parse_args()
    if not 0 < arguments.timeout <= 86_400:
        parser.error("--timeout is a number of seconds over 0, and a day at the most")
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
        ask(parameters, arguments.numbers, arguments.timeout)
    except (RpcError, AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # at once: sys.exit would wait for other threads


if __name__ == "__main__":
    main()
