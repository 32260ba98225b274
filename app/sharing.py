"""How clients share what there is too little of: nobody takes all of the room, and all take turns.

A client is whatever tells one from another: here its address.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

#: How many times what would be left free a client may hold. One alone gets eight ninths of a room,
#: each of two eight seventeenths, and so on: whoever comes next always finds some of it free.
_SHARE = 8


class Room:
    """So much of something, which clients hold parts of.

    A client's limit is a multiple of what is free: "Dynamic queue length thresholds for
    shared-memory packet switches" (Choudhury and Hahne, IEEE/ACM Transactions on Networking 1998).
    So there is no limit to set for each, and as good as nothing stays empty while many want it.

    Not for several threads at once.

    Args:
        size: how much there is, in any unit.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: Counter[str] = Counter()

    @property
    def used(self) -> int:
        """How much is held by all clients."""
        return self._held.total()

    def take(self, client: str, amount: int) -> bool:
        """Take some more of it, if there is enough for that.

        An empty room takes anything: whether something is too large as such is not asked here. Of
        one who holds nothing yet no more is asked than that it fits.
        """
        held, free = self._held[client], self._size - self.used - amount
        if self.used and (free < 0 or (held and held + amount > _SHARE * free)):
            return False
        self._held[client] += amount
        return True

    def give_back(self, client: str, amount: int) -> None:
        """Give back some of what was taken."""
        self._held[client] -= amount
        if not self._held[client]:
            del self._held[client]

    def before(self, client: str, amount: int) -> int:
        """How much has its turn before the last of so much more of a client's, as in `Turns`."""
        most = self._held[client] + amount
        return sum(min(held, most) for held in self._held.values())


class Turns(Generic[T]):
    """A queue in which clients take turns: one of many things waits no longer for having many."""

    def __init__(self) -> None:
        # In the order of their next turn; none is empty.
        self._lines: dict[str, deque[T]] = {}

    def append(self, client: str, item: T) -> None:
        """Queue one more thing of a client, behind its others."""
        self._lines.setdefault(client, deque()).append(item)

    def popleft(self) -> T:
        """Take the next thing.

        Raises:
            StopIteration: nothing waits.
        """
        client = next(iter(self._lines))
        line = self._lines.pop(client)
        item = line.popleft()
        if line:
            self._lines[client] = line
        return item

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return ((client, item) for client, line in self._lines.items() for item in line)
