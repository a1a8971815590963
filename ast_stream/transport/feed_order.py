"""The feed as a reader sees it: what was missed, what came twice; no sockets, no clock.

Every durable message says the `seq` of the durable one before it, and status and health messages
the `seq` of the last one, so that a reader of a few topics knows of every loss.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from ast_stream.messages.event import Identity
from ast_stream.messages.feed import BOOT_TOPIC, FeedMessage, Position

REMEMBERED_MESSAGES = 10_000  # against repeats with a new `seq`, after a worker was killed
_REMEMBERED_BOOTS = 64


@dataclass(frozen=True)
class Missed:
    """Durable messages that are lost to this reader.

    Attributes:
        after: position of the last message before the hole, None if there was none.
        upto: position of the last lost message; of a later boot if the publisher was restarted.
        reason: why they could not be had again, a sentence.
    """

    after: Position | None
    upto: Position
    reason: str


class FeedOrder:
    """Where a reader stands among the durable messages of one publisher.

    For each message of the feed: if it `follows`, `take` it; else replay what is after
    `position` through `replayed`, then call `caught_up`, or `give_up` if there is no replay.

    Attributes:
        position: last durable message taken or given up, None before the first contact.
        duplicates: durable messages that came twice.
    """

    def __init__(self, position: Position | None = None) -> None:
        self.position = position
        self.duplicates = 0
        self._past_boots: deque[str] = deque(maxlen=_REMEMBERED_BOOTS)
        self._seen: OrderedDict[Identity, None] = OrderedDict()

    def follows(self, message: FeedMessage) -> bool:
        """Tell whether no durable message is missing before `message`."""
        before = message.position_before
        if before is None or before[0] in self._past_boots:
            return True
        if self.position is None or before[0] != self.position[0]:
            return False
        return before[1] <= self.position[1]

    def take(self, message: FeedMessage) -> FeedMessage | None:
        """Return a message that `follows`, or None if it was had already."""
        if not message.is_durable:
            return message
        boot, seq = message.position
        is_old = boot in self._past_boots or (self.position is not None and seq <= self.position[1])
        if not is_old:
            self.position = message.position
        if is_old or self._is_repeated(message):
            self.duplicates += 1
            return None
        return message

    def replayed(self, message: FeedMessage) -> list[FeedMessage | Missed]:
        """Return what the next replayed message brings: itself, or a hole before it as well."""
        items: list[FeedMessage | Missed] = []
        before = message.position_before
        if before is not None and not self.follows(message):
            items += self._skip_to(before, "the publisher's event log does not have them")
        if message.topic == BOOT_TOPIC:
            return items
        taken = self.take(message)
        return items if taken is None else [*items, taken]

    def caught_up(self, message: FeedMessage) -> list[FeedMessage | Missed]:
        """Learn that the replay is complete up to the live `message`; now it follows."""
        before = message.position_before
        if before is None or self.follows(message):
            return []
        return self._skip_to(before, "the publisher's event log does not have them")

    def too_old(self, oldest: Position) -> list[FeedMessage | Missed]:
        """Learn that only what comes after `oldest` can be replayed; go on there."""
        missed = Missed(self.position, oldest, "the publisher's event log no longer has them")
        self._move_to(oldest)
        return [missed]

    def give_up(self, message: FeedMessage, reason: str) -> list[FeedMessage | Missed]:
        """Go on with the live `message`, which now follows; report the hole before it."""
        before = message.position_before
        if before is None or self.follows(message):
            return []
        missed = Missed(self.position, before, reason)
        self._move_to(before)
        return [missed]

    def start_at(self, position: Position) -> None:
        """Take `position` for the place where this reader begins."""
        self._move_to(position)

    def _skip_to(self, before: Position, reason: str) -> list[FeedMessage | Missed]:
        """Pass to another boot, which is no loss, or over a hole in one; begin anywhere."""
        start = self.position
        self._move_to(before)
        last_had = 0 if start is None or start[0] != before[0] else start[1]
        return [] if start is None or before[1] <= last_had else [Missed(start, before, reason)]

    def _move_to(self, position: Position) -> None:
        if self.position is not None and self.position[0] != position[0]:
            self._past_boots.append(self.position[0])
        self.position = position

    def _is_repeated(self, message: FeedMessage) -> bool:
        identity = message.identity
        if identity is None:
            return False
        is_repeated = identity in self._seen
        self._seen[identity] = None
        self._seen.move_to_end(identity)
        if len(self._seen) > REMEMBERED_MESSAGES:
            self._seen.popitem(last=False)
        return is_repeated
