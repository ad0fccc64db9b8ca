"""What happens on all streams, told to everybody who asked for it.

Streams of different clients may have the same name, so each gets a number that no other has in this process, which comes
with its events as `id`. Who asks while a stream is being decoded is told its last words first.
"""

import threading
from collections.abc import Callable

from voxpipe.output.events import Event

MAX_WORDS = 500  # characters of each stream that are kept for those who come later

Subscriber = Callable[[Event], None]


class Channel:
    """One stream's events on their way to everybody.

    Attributes:
        number: of the stream, from 1.
        words: the last of its text, at most MAX_WORDS characters.
    """

    def __init__(self, number: int, broadcast: "Broadcast") -> None:
        self.number = number
        self.words = ""
        self.start: Event = {}
        self._broadcast = broadcast

    def tell(self, event: Event) -> None:
        """Pass one event on; `start` first, `done` last."""
        self._broadcast.tell(self, {**event, "id": self.number})


class Broadcast:
    """Carries the events of any number of streams to any number of subscribers, from and to any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_channels = 0
        self._channels: dict[int, Channel] = {}
        self._subscribers: list[Subscriber] = []

    @property
    def n_subscribers(self) -> int:
        return len(self._subscribers)

    def open(self) -> Channel:
        """A channel for a new stream."""
        with self._lock:
            self._n_channels += 1
            return Channel(self._n_channels, self)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Have it told what comes, beginning with the `start` of every stream there is, with its last words as `text`.

        It is called from the threads of the streams and must not wait for anything.
        """
        with self._lock:
            for channel in self._channels.values():
                subscriber({**channel.start, **({"text": channel.words} if channel.words else {})})
            self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Tell it nothing more."""
        with self._lock:
            self._subscribers.remove(subscriber)

    def tell(self, channel: Channel, event: Event) -> None:
        """Tell everybody, in the order of the calls."""
        with self._lock:
            if event["type"] == "start":
                channel.start = event
                self._channels[channel.number] = channel
            elif event["type"] == "delta":
                channel.words = (channel.words + event["text"])[-MAX_WORDS:]
            elif event["type"] == "done":
                self._channels.pop(channel.number, None)
            for subscriber in self._subscribers:
                subscriber(event)
