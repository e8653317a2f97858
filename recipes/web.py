# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""An example: a web server whose threads share one Publisher and one FibonacciRpcClient.

    python recipes/web.py 8000

It needs publisher.py and rpc_client.py beside it.
"""

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika
from pika.exceptions import AMQPError
from publisher import RABBITMQ_URL, Publisher, PublishError
from rpc_client import FibonacciRpcClient, RpcError

# One of each for the whole program. Each request is answered in a thread of its own.
client = FibonacciRpcClient(pika.URLParameters(RABBITMQ_URL))
publisher = Publisher(pika.URLParameters(RABBITMQ_URL), queue="jobs")


class Handler(BaseHTTPRequestHandler):
    """Answers GET /fib/30 with a number, and POST /jobs once the job is safe in the queue."""

    def do_GET(self) -> None:
        """Ask a server for the number, and wait for its answer."""
        self.answer(lambda: str(client.call(int(self.path.removeprefix("/fib/")), timeout=5)))

    def do_POST(self) -> None:
        """Publish the body as a job, and wait for RabbitMQ's confirm."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(lambda: publisher.publish(body, timeout=5).result(timeout=5))

    def answer(self, work: Callable[[], str | None]) -> None:
        """Send what the work returns, or an error that tells whose fault it is."""
        try:
            status, text = HTTPStatus.OK, work() or "queued"
        except ValueError as error:
            status, text = HTTPStatus.BAD_REQUEST, str(error)
        except (RpcError, PublishError) as error:
            status, text = HTTPStatus.BAD_GATEWAY, str(error)
        except (TimeoutError, AMQPError, OSError):
            status, text = HTTPStatus.SERVICE_UNAVAILABLE, "RabbitMQ or the server is not there"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends as by Ctrl+C
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    with suppress(KeyboardInterrupt), client, publisher, server:
        print(f" [*] Serving http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
