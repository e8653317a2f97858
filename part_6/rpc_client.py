# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Ask part_6/rpc_server.py for Fibonacci numbers, all at once, and print them.

Run it: python part_6/rpc_client.py 30
or:     python part_6/rpc_client.py --timeout 5 30 5 12
"""

import contextlib
import os
import re
import signal
import sys
import time
import uuid
from argparse import ArgumentParser, RawTextHelpFormatter
from typing import Self

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
QUEUE = "rpc_queue"


class RpcError(Exception):
    """The call failed: the server says why, or there is no queue to reach a server by."""


class FibonacciRpcClient:
    """Calls part_6/rpc_server.py. All calls share one connection and one callback queue.

    Use it in the thread and the process that made it, in a `with` statement. A call may raise
    RpcError, TimeoutError, and, if the connection is lost, as after minutes without a call, pika's
    AMQPError. Requests under way are lost with it. The next call connects anew, and may raise what
    pika.BlockingConnection does.
    """

    def __init__(self, parameters: pika.URLParameters) -> None:
        self.parameters, self.process = parameters, os.getpid()
        self.requests: dict[str, tuple[float, list[bytes | RpcError]]] = {}  # id: deadline, answer
        self.connect()

    def connect(self) -> None:
        """Connect, and make a callback queue; RabbitMQ deletes it when the connection closes."""
        self.connection = pika.BlockingConnection(self.parameters)
        self.channel = channel = self.connection.channel()
        self.callback_queue = queue = channel.queue_declare(queue="", exclusive=True).method.queue
        channel.add_on_return_callback(callback=self.on_answer)
        channel.basic_consume(queue=queue, on_message_callback=self.on_answer, auto_ack=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RpcError, pika.exceptions.AMQPError, OSError):
            if self.channel.is_open:  # ask ourselves first: to close, RabbitMQ has to answer
                self.result(self.request(0, timeout=1, queue=self.callback_queue))
            self.connection.close()

    def call(self, n: int, timeout: float = 10) -> int:
        """Return the n-th Fibonacci number, or raise TimeoutError after `timeout` seconds."""
        return self.result(self.request(n, timeout))

    def request(self, n: int, timeout: float = 10, queue: str = QUEUE) -> str:
        """Send a request, and return its correlation id at once, for `result`, which waits."""
        if self.process != os.getpid():
            raise RpcError("this client was made by another process")
        if not timeout > 0:
            raise TimeoutError(f"a timeout of {timeout} s leaves no time to answer")
        if self.channel.is_closed or not self.channel.consumer_tags:  # lost, or its queue deleted
            with contextlib.suppress(pika.exceptions.AMQPError):
                self.connection.close()
            self.connect()
        timeout = min(timeout, 86_400)  # a day: RabbitMQ refuses an expiration that is far away
        correlation_id = str(uuid.uuid4())  # which no other client has
        expiration = str(int(timeout * 1000))  # ms; nobody waits for an answer after that
        properties = BasicProperties(
            reply_to=self.callback_queue, correlation_id=correlation_id, expiration=expiration
        )
        body = str(n).encode()
        self.channel.basic_publish(  # mandatory: if there is no queue, it comes back to on_answer
            exchange="", routing_key=queue, body=body, properties=properties, mandatory=True
        )
        self.requests[correlation_id] = time.monotonic() + timeout, []
        return correlation_id

    def result(self, correlation_id: str) -> int:
        """Wait for the answer to that request, and return or raise as `call` does."""
        deadline, answer = self.requests[correlation_id]
        try:
            while not answer:
                if (left := deadline - time.monotonic()) <= 0:
                    raise TimeoutError("no answer in time: no server runs, or all are busy")
                if self.channel.is_closed or not self.channel.consumer_tags:
                    raise pika.exceptions.AMQPChannelError("queue deleted, or a request refused")
                self.connection.process_data_events(time_limit=left)
        finally:
            del self.requests[correlation_id]  # an answer that comes later is ignored
        if isinstance(number := answer[0], RpcError):
            raise number
        if not number.isdigit() or len(number) > 4300:  # int() refuses more digits
            raise RpcError(f"the answer is no number: {number[:20]!r}")
        return int(number)

    def on_answer(
        self, _: BlockingChannel, method: object, properties: BasicProperties, body: bytes
    ) -> None:
        """Keep the answer to a request under way, or its return; `result` takes the first."""
        answer = self.requests.get(properties.correlation_id, (0, []))[1]  # or nobody's
        if isinstance(method, Basic.Return):
            answer.append(RpcError(f"there is no queue {QUEUE!r}, so no server to answer"))
        elif properties.type == "error":
            answer.append(RpcError(body.decode(errors="replace")))
        else:
            answer.append(body)


def ask(parameters: pika.URLParameters, numbers: list[int], timeout: float) -> None:
    """Request the Fibonacci numbers all at once, then print each."""
    try:
        with FibonacciRpcClient(parameters) as client:
            print(f" [x] Requesting {', '.join(f'fib({n})' for n in numbers)}")
            for n, correlation_id in [(n, client.request(n, timeout)) for n in numbers]:
                print(f" [.] fib({n}) = {client.result(correlation_id)}")
    except RpcError as error:
        sys.exit(f" [!] RpcError: {error}")


# The rest is the command line: the same in all twelve scripts, but for arguments and one call.
def main() -> None:
    """Run from a terminal: read the arguments and the address, say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, default=[30], metavar="N", help="of fib(N)")
    parser.add_argument("--timeout", type=float, default=10, help="seconds to wait (default: 10)")
    arguments = parser.parse_args()
    if not 0 < arguments.timeout <= 86_400:
        parser.error("--timeout is a number of seconds over 0, and a day at the most")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    try:  # pika would take localhost for a missing host, and a wrong option may raise anything
        [_] = re.findall(rb"^amqps?://(?:[^/?#]*@)?+[\w.[][!-~]*$", RABBITMQ_URL.encode("ascii"))
        (parameters := pika.URLParameters(RABBITMQ_URL)).host.encode("idna")
        _ = [range(2**31)[option] for option in (parameters.tcp_options or {}).values()]
    except Exception:
        sys.exit(" [!] RABBITMQ_URL is no address. Write amqp://user:password@host:5672/%2F")
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or 30  # seconds
    try:
        ask(parameters, arguments.numbers, arguments.timeout)
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        if getattr(error, "filename", None):  # an error of yours, not of the network
            raise
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # sys.exit would wait for other threads, and for the output


if __name__ == "__main__":
    main()
