"""The plainest sender of a task: as new_task.py, but nobody confirms."""

import os
import sys

import pika

with pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])) as connection:
    channel = connection.channel()
    channel.queue_declare(queue="task_queue", durable=True)
    channel.basic_publish(
        exchange="",
        routing_key="task_queue",
        body=sys.argv[1].encode(),
        properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
    )
print(f" [x] Sent {sys.argv[1]!r}", flush=True)
