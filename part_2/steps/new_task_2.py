"""A sender of tasks, step 2: its tasks outlive a restart. But a rejected one is Sent as well."""

import os
import sys

import pika

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"

message = " ".join(sys.argv[1:]) or "Hello World!"
with pika.BlockingConnection(pika.URLParameters(RABBITMQ_URL)) as connection:
    channel = connection.channel()
    channel.queue_declare(queue="task_queue", durable=True)
    channel.basic_publish(
        exchange="",
        routing_key="task_queue",
        body=message.encode(),
        properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
    )
print(f" [x] Sent {message!r}", flush=True)
