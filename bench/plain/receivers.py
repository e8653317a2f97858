"""Many receivers of the fanout exchange "logs" in one process, each with a queue of its own.

python bench/plain/receivers.py RECEIVERS COPIES

Ends once so many copies have come to all of them together.
"""

import os
import sys

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

receivers, left = int(sys.argv[1]), int(sys.argv[2])


def on_message(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Count one copy."""
    global left
    left -= 1
    if not left:
        channel.stop_consuming()


with pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])) as connection:
    channel = connection.channel()
    channel.exchange_declare(exchange="logs", exchange_type="fanout")
    for _ in range(receivers):
        queue = channel.queue_declare(queue="", exclusive=True).method.queue
        channel.queue_bind(queue=queue, exchange="logs")
        channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for logs", flush=True)
    channel.start_consuming()
    print(" [x] Received all", flush=True)
