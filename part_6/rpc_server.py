# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Answer requests for Fibonacci numbers from the queue "rpc_queue", one at a time.

    python part_6/rpc_server.py

Start it in several terminals to share the work. part_6/rpc_client.py sends the requests.

A request's body is a whole number in decimal digits. The answer goes to the queue that `reply_to`
names, with the request's `correlation_id`. Its body is the Fibonacci number, in decimal digits; or,
where the answer's property `type` is "error", what is wrong with the request, in words.
"""

import contextlib
import os
import signal
import socket
import ssl
import sys
import threading
import time
from argparse import ArgumentParser, RawTextHelpFormatter

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelWrongStateError
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
# What a connection that fails or is lost may raise.
CONNECTION_ERRORS = (AMQPConnectionError, AMQPConnectorException, socket.gaierror, ssl.SSLError)
QUEUE = "rpc_queue"
# fib(20000) has 4,180 digits. Python refuses to print or to read integers of over 4,300.
LIMIT = 20_000

# pika's connection is for one thread at a time: the one that holds this lock.
connection_lock = threading.Lock()


def fib(n: int) -> int:
    """Return the n-th Fibonacci number; the first two, for n = 0 and n = 1, are 0 and 1."""
    current, following = 0, 1
    for _ in range(n):
        current, following = following, current + following
    return current


def answer_to(request: bytes) -> tuple[str, str]:
    """Return the answer's type, "result" or "error", and its text."""
    n = int(request) if request.isdigit() and len(request) <= len(str(LIMIT)) else -1
    if not 0 <= n <= LIMIT:
        shown = request[:20].decode(errors="replace")
        return "error", f"{shown!r} is not a whole number from 0 to {LIMIT}"
    return "result", str(fib(n))


def on_request(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Answer one request, and acknowledge it once it is answered."""
    asked = repr(body[:20])[2:-1]  # with escapes, since it may be anything
    print(f" [.] fib({asked})", flush=True)
    if properties.reply_to:
        connection_lock.release()  # while we work, the connection is keep_heartbeats' to use
        try:
            kind, text = answer_to(body)
        except Exception as error:  # which is not to be taken for one of the connection
            raise RuntimeError(f"the request failed: {error!r}") from error
        finally:
            connection_lock.acquire()
        channel.basic_publish(
            exchange="",
            routing_key=properties.reply_to,
            body=text.encode(),
            properties=BasicProperties(correlation_id=properties.correlation_id, type=kind),
        )
    else:
        print(" [!] Dropped a request without reply_to: whom to answer?", file=sys.stderr)
    channel.basic_ack(delivery_tag=method.delivery_tag)


def keep_heartbeats(connection: pika.BlockingConnection) -> None:
    """Answer RabbitMQ's heartbeats during a request: without an answer it takes us for dead."""
    with contextlib.suppress(AMQPError):  # the main thread meets the same error and deals with it
        while True:
            with connection_lock:
                if connection.is_closed:
                    return
                connection.process_data_events()
            time.sleep(1)


def consume(connection: pika.BlockingConnection) -> None:
    """Pass each request of the queue to on_request, as long as the connection lasts."""
    channel = connection.channel()
    channel.queue_declare(queue=QUEUE, durable=True)
    channel.basic_qos(prefetch_count=1)  # no next request before this one is acknowledged
    channel.basic_consume(queue=QUEUE, on_message_callback=on_request)
    threading.Thread(target=keep_heartbeats, args=[connection], daemon=True).start()
    print(" [*] Waiting for requests. To exit press CTRL+C", flush=True)
    channel.start_consuming()
    raise ChannelWrongStateError("somebody has deleted the queue")  # else it would not return


def serve() -> None:
    """Consume, and connect again with a growing pause whenever the connection is lost."""
    parameters = pika.URLParameters(RABBITMQ_URL)
    # RabbitMQ blocks publishers while it is short of memory or disk: wait, not for ever.
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or 30  # seconds
    pause = 0
    connection_lock.acquire()
    while True:
        try:
            with pika.BlockingConnection(parameters) as connection:
                pause = 1  # second
                consume(connection)
        except (*CONNECTION_ERRORS, ChannelWrongStateError) as error:
            if not pause:
                raise  # never connected: a wrong address or password is said at once
            print(f" [!] Connection lost: {error!r}. Trying again in {pause} s", file=sys.stderr)
            time.sleep(pause)
            pause = min(2 * pause, 5)


def goodbye(*_: object) -> None:
    """End at once, on Ctrl+C or SIGTERM: an exception in the middle of pika's work may get lost."""
    try:
        os.write(1, b" [*] Goodbye\n")
    finally:
        os._exit(0)  # whether anybody reads that or not


def main() -> None:
    """Run from a command line: its arguments, Ctrl+C, and one clear line where it fails."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.parse_args()
    signal.signal(signal.SIGINT, goodbye)
    signal.signal(signal.SIGTERM, goodbye)
    try:  # pika reads options as Python literals, and files that they name
        pika.URLParameters(RABBITMQ_URL).host.encode("idna")
    except (ValueError, TypeError, LookupError, SyntaxError, OSError) as error:
        why = type(error).__name__  # and not the text, which may quote the password
        sys.exit(f" [!] Malformed RABBITMQ_URL ({why}). Write amqp://user:password@host:5672/%2F")
    try:
        serve()
    except BrokenPipeError:  # whoever read what this prints has ended, as in `... | head -1`
        os._exit(0)  # and no last flush, which would fail again
    except CONNECTION_ERRORS as error:
        sys.exit(f" [!] No connection: {error!r}. Is RabbitMQ up? See RABBITMQ_URL and its log.")
    except (AMQPError, UnicodeEncodeError) as error:
        sys.exit(f" [!] Refused: {error!r}. Fix what that names, then start again.")


if __name__ == "__main__":
    main()
