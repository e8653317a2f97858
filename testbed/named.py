"""The broker that RABBITMQ_URL names: it is somebody's, and only borrowed."""

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from pika.exceptions import ChannelClosedByBroker

from testbed.broker import EXCHANGES, NO_CONNECTION, OF_RECIPES, QUEUES, Broker, NoBrokerError


class NamedBroker(Broker):
    """Somebody's running broker: what the run makes there is deleted, and all else is kept."""

    def __init__(self, url: str) -> None:
        """Take the broker at `url`, with RABBITMQ_MANAGEMENT_URL for its management API.

        By default that is at port 15672 of the same host, with the same login.

        Raises:
            NoBrokerError: It cannot be reached, or has queues or exchanges of the tutorial's names.
        """
        self.description = "the broker that RABBITMQ_URL names"
        self.url = url
        try:
            queues = self._present("queue", (*QUEUES, *OF_RECIPES))
            present = [*queues, *self._present("exchange", EXCHANGES)]
        except (*NO_CONNECTION, ValueError) as error:
            raise NoBrokerError(
                f"{self.description} cannot be used: {type(error).__name__}. Unset RABBITMQ_URL"
                " for another one"
            ) from error
        if present:
            raise NoBrokerError(
                f"{self.description} has {', '.join(present)} already. It may be somebody's, so"
                " nothing was touched: delete it, or name another virtual host"
            )
        self.description += f", RabbitMQ {self.version}"
        parts = urlsplit(url)
        login = f"{parts.username}:{parts.password}@" if parts.username else "guest:guest@"
        default = f"http://{login}{parts.hostname}:15672"
        self.management_url = os.environ.get("RABBITMQ_MANAGEMENT_URL") or default

    def _present(self, what: str, names: tuple[str, ...]) -> Iterator[str]:
        for name in names:
            try:
                with self.channel() as channel:
                    if what == "queue":
                        channel.queue_declare(queue=name, passive=True)
                    else:
                        channel.exchange_declare(exchange=name, passive=True)
            except ChannelClosedByBroker as error:
                if error.reply_code == 404:  # NOT_FOUND, the answer that is hoped for
                    continue
                raise NoBrokerError(f"{self.description} refuses: {error.reply_text}") from error
            yield f"the {what} {name!r}"

    @property
    def has_management(self) -> bool:
        """Whether the management API answers, and is this broker's and not another one's."""
        with self.channel() as channel:
            queue = channel.queue_declare(queue="", exclusive=True).method.queue
            return super().has_management and queue in self.queues()
