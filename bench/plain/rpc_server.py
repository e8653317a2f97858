"""The plainest RPC server: no heartbeat during a request, no check of it, no second connection."""

import os

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties


def fib(n: int) -> int:
    """Return the n-th Fibonacci number."""
    current, following = 0, 1
    for _ in range(n):
        current, following = following, current + following
    return current


def on_request(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Answer one request."""
    n = int(body)
    print(f" [.] fib({n})", flush=True)
    channel.basic_publish(
        exchange="",
        routing_key=properties.reply_to,
        properties=BasicProperties(correlation_id=properties.correlation_id),
        body=str(fib(n)).encode(),
    )
    channel.basic_ack(delivery_tag=method.delivery_tag)


with pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])) as connection:
    channel = connection.channel()
    channel.queue_declare(queue="rpc_queue", durable=True)
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="rpc_queue", on_message_callback=on_request)
    print(" [*] Waiting for requests", flush=True)
    channel.start_consuming()
