# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Print every log message from now on whose routing key matches a pattern, until Ctrl+C.

    python part_5/receive_logs_topic.py 'kern.*' '*.critical'

In a pattern * stands for one word, and # for any number of words, none included.
part_5/emit_log_topic.py, in another terminal, sends them.
"""

import os
import signal
import socket
import ssl
import sys
from argparse import ArgumentParser, RawTextHelpFormatter

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelWrongStateError
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
# What a connection that fails or is lost may raise.
CONNECTION_ERRORS = (AMQPConnectionError, AMQPConnectorException, socket.gaierror, ssl.SSLError)
EXCHANGE = "topic_logs"


def on_message(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Print one message, with its routing key."""
    print(f" [x] {method.routing_key!r}:{body.decode(errors='replace')!r}", flush=True)


def receive(binding_keys: list[str]) -> None:
    """Pass each message that a binding key matches to on_message, while the connection lasts."""
    with pika.BlockingConnection(pika.URLParameters(RABBITMQ_URL)) as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange=EXCHANGE, exchange_type="topic")
        queue = channel.queue_declare(queue="", exclusive=True).method.queue
        for binding_key in binding_keys:
            channel.queue_bind(queue=queue, exchange=EXCHANGE, routing_key=binding_key)
        channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
        print(" [*] Waiting for logs. To exit press CTRL+C", flush=True)
        channel.start_consuming()
        raise ChannelWrongStateError("somebody has deleted the queue")  # else it would not return


def goodbye(*_: object) -> None:
    """End at once, on Ctrl+C or SIGTERM: an exception in the middle of pika's work may get lost."""
    try:
        os.write(1, b" [*] Goodbye\n")
    finally:
        os._exit(0)  # whether anybody reads that or not


def main() -> None:
    """Run from a command line: its arguments, Ctrl+C, and one clear line where it fails."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("binding_keys", nargs="+", metavar="PATTERN", help="such as kern.* or #")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, goodbye)
    signal.signal(signal.SIGTERM, goodbye)
    try:  # pika reads options as Python literals, and files that they name
        pika.URLParameters(RABBITMQ_URL).host.encode("idna")
    except (ValueError, TypeError, LookupError, SyntaxError, OSError) as error:
        why = type(error).__name__  # and not the text, which may quote the password
        sys.exit(f" [!] Malformed RABBITMQ_URL ({why}). Write amqp://user:password@host:5672/%2F")
    try:
        receive(arguments.binding_keys)
    except BrokenPipeError:  # whoever read what this prints has ended, as in `... | head -1`
        os._exit(0)  # and no last flush, which would fail again
    except CONNECTION_ERRORS as error:
        sys.exit(f" [!] No connection: {error!r}. Is RabbitMQ up? See RABBITMQ_URL and its log.")
    except (AMQPError, UnicodeEncodeError) as error:
        sys.exit(f" [!] Refused: {error!r}. Fix what that names, then start again.")


if __name__ == "__main__":
    main()
