# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Ask rpc_server.py for Fibonacci numbers, and print them.

    python part_6/rpc_client.py 30
    python part_6/rpc_client.py --timeout 5 30 5 12

part_6/rpc_server.py, in another terminal, answers. All requests are sent before the first answer
is waited for.

A request's body is a whole number in decimal digits. The answer goes to the queue that `reply_to`
names, with the request's `correlation_id`. Its body is the Fibonacci number, in decimal digits; or,
where the answer's property `type` is "error", what is wrong with the request, in words.
"""

import itertools
import os
import signal
import socket
import ssl
import sys
import time
import uuid
from argparse import ArgumentParser, RawTextHelpFormatter
from dataclasses import dataclass
from typing import Self

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelWrongStateError
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
# What a connection that fails or is lost may raise.
CONNECTION_ERRORS = (AMQPConnectionError, AMQPConnectorException, socket.gaierror, ssl.SSLError)
QUEUE = "rpc_queue"


class RpcError(Exception):
    """The call failed. The text is the server's own, or says that there is no server."""


@dataclass
class Request:
    """A request under way: until when its answer is waited for, and the answer."""

    deadline: float
    answer: bytes | RpcError | None = None


class FibonacciRpcClient:
    """A client of rpc_server.py, with one connection and one callback queue for all its calls.

    It is for one thread, and for a `with` statement. Beside what its methods document they raise
    pika's errors, such as that of a lost connection. Nobody answers heartbeats between calls: for a
    call now and then make a client each time, or call `connection.process_data_events()` meanwhile.
    """

    def __init__(self, url: str = RABBITMQ_URL) -> None:
        parameters = pika.URLParameters(url)
        # RabbitMQ blocks publishers while it is short of memory or disk: wait, not for ever.
        parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or 30
        self.requests: dict[str, Request] = {}  # by correlation id
        client_id = uuid.uuid4()  # so that an id is unique among those of all clients
        self.correlation_ids = (f"{client_id}.{number}" for number in itertools.count(1))
        self.connection = pika.BlockingConnection(parameters)
        self.channel = self.connection.channel()
        self.channel.add_on_return_callback(callback=self.on_return)
        self.callback_queue = self.channel.queue_declare(queue="", exclusive=True).method.queue
        self.channel.basic_consume(
            queue=self.callback_queue, on_message_callback=self.on_answer, auto_ack=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.connection.is_open:
            self.connection.close()

    def call(self, n: int, timeout: float = 10) -> int:
        """Return the n-th Fibonacci number, as the server says within `timeout` seconds.

        Raises:
            RpcError: The server says that it cannot, or there is no queue to reach it by.
            TimeoutError: No server answered in time.
        """
        return self.result(self.request(n, timeout))

    def request(self, n: int, timeout: float = 10) -> str:
        """Send a request, and return its correlation id at once; `result` waits for the answer."""
        correlation_id = next(self.correlation_ids)
        self.requests[correlation_id] = Request(deadline=time.monotonic() + timeout)
        self.channel.basic_publish(
            exchange="",
            routing_key=QUEUE,
            body=str(n).encode(),
            properties=BasicProperties(
                reply_to=self.callback_queue,
                correlation_id=correlation_id,
                expiration=str(int(timeout * 1000)),  # ms; nobody waits for the answer any longer
            ),
            mandatory=True,  # without a queue the request comes back, to on_return
        )
        return correlation_id

    def result(self, correlation_id: str) -> int:
        """Wait for the answer to that one of the requests, and return or raise as `call` does."""
        request = self.requests[correlation_id]
        try:
            while request.answer is None:
                left = request.deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("no answer in time: is rpc_server.py running, or busy?")
                self.connection.process_data_events(time_limit=left)
                if self.channel.is_closed:
                    raise ChannelWrongStateError("a request was refused: RabbitMQ's log says why")
        finally:
            del self.requests[correlation_id]  # what comes for it from now on is late
        if isinstance(request.answer, RpcError):
            raise request.answer
        return int(request.answer)

    def on_answer(
        self, _: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        """Keep the first answer to each request under way; ignore late, second and unknown ones."""
        request = self.requests.get(properties.correlation_id)
        if request and request.answer is None:
            is_error = properties.type == "error"
            request.answer = RpcError(body.decode(errors="replace")) if is_error else body

    def on_return(
        self, _: BlockingChannel, method: Basic.Return, properties: BasicProperties, body: bytes
    ) -> None:
        """Take the return of a request for its answer."""
        if request := self.requests.get(properties.correlation_id):
            request.answer = RpcError(f"there is no queue {QUEUE!r}: start rpc_server.py")


def ask(numbers: list[int], timeout: float) -> None:
    """Request the Fibonacci numbers all at once, then print each."""
    with FibonacciRpcClient() as client:
        print(f" [x] Requesting {', '.join(f'fib({n})' for n in numbers)}", flush=True)
        requests = [(n, client.request(n, timeout)) for n in numbers]
        for n, correlation_id in requests:
            print(f" [.] fib({n}) = {client.result(correlation_id)}", flush=True)


def goodbye(*_: object) -> None:
    """End at once, on Ctrl+C or SIGTERM: an exception in the middle of pika's work may get lost."""
    try:
        os.write(1, b" [*] Goodbye\n")
    finally:
        os._exit(0)  # whether anybody reads that or not


def main() -> None:
    """Run from a command line: its arguments, Ctrl+C, and one clear line where it fails."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, default=[30], metavar="N", help="of fib(N)")
    parser.add_argument("--timeout", type=float, default=10, help="seconds to wait (default: 10)")
    arguments = parser.parse_args()
    if not 0 < arguments.timeout <= 86_400:
        parser.error("--timeout is a number of seconds over 0, and a day at the most")
    signal.signal(signal.SIGINT, goodbye)
    signal.signal(signal.SIGTERM, goodbye)
    try:  # pika reads options as Python literals, and files that they name
        pika.URLParameters(RABBITMQ_URL).host.encode("idna")
    except (ValueError, TypeError, LookupError, SyntaxError, OSError) as error:
        why = type(error).__name__  # and not the text, which may quote the password
        sys.exit(f" [!] Malformed RABBITMQ_URL ({why}). Write amqp://user:password@host:5672/%2F")
    try:
        ask(arguments.numbers, arguments.timeout)
    except BrokenPipeError:  # whoever read what this prints has ended, as in `... | head -1`
        os._exit(0)  # and no last flush, which would fail again
    except CONNECTION_ERRORS as error:
        sys.exit(f" [!] No connection: {error!r}. Is RabbitMQ up? See RABBITMQ_URL and its log.")
    except (RpcError, TimeoutError) as error:
        sys.exit(f" [!] {type(error).__name__}: {error}")
    except (AMQPError, UnicodeEncodeError) as error:
        sys.exit(f" [!] Refused: {error!r}. Fix what that names, then start again.")


if __name__ == "__main__":
    main()
