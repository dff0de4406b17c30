"""Claims, by which a publication reserves the number of its version before its files are written.

The file `.claim` in a version's folder belongs to a publication that is in progress or was killed.
"""

import datetime
import uuid

from thyroid import storage
from thyroid.errors import InputError
from thyroid.registry.aliases import AliasesFile, State, now
from thyroid.storage import ABSENT, ChangedError

_FILE = ".claim"
_STALE = datetime.timedelta(days=1)  # a publication takes minutes, so one that is older than this was killed


class Claims:
    """The claims of one registry.

    Args:
        home: Folder of the registry's versions.
        aliases: The registry's aliases.json.
    """

    def __init__(self, home: storage.Folder | storage.Bucket, aliases: AliasesFile) -> None:
        """Keep both. Nothing is read yet."""
        self._home = home
        self._aliases = aliases

    def make(self) -> tuple[int, bytes]:
        """Claim a number that nobody else has or had, and return it with the content of its claim."""
        number, claim = max([*self._used(), *self._folders()], default=0) + 1, _token()
        while True:
            try:
                self._home.write(f"{number}/{_FILE}", claim, ABSENT)
            except ChangedError:
                number += 1
                continue
            if number not in self._used():
                return number, claim
            self.release(number)  # another process claimed and published it, and removed its claim, in the meantime
            number += 1

    def holds(self, number: int, claim: bytes) -> bool:
        """Return whether a number still has this claim."""
        return self._home.read(f"{number}/{_FILE}")[0] == claim

    def release(self, number: int) -> None:
        """Remove the claim of a number."""
        self._home.remove(f"{number}/{_FILE}")

    def mark(self, number: int) -> None:
        """Claim the number of a version that is being removed. If the removal is killed, the next call finishes it."""
        self._home.write(f"{number}/{_FILE}", _token())

    def take_over(self, state: State) -> list[int]:
        """Take over the claims of killed publications and return their numbers; remove claims of published versions."""
        taken = []
        published = state.versions
        for number in self._folders():
            claim, generation = self._home.read(f"{number}/{_FILE}")
            if not claim:
                continue
            if number in published:
                self.release(number)
            elif now() - self._time_of(number, claim) > _STALE:
                try:
                    self._home.write(f"{number}/{_FILE}", _token(), generation)
                except ChangedError:
                    continue
                taken.append(number)
        return taken

    def _used(self) -> set[int]:
        """Return the numbers that are or were published, and those of leftovers that were removed."""
        state = self._aliases.read()
        return {*state.versions, *(line["version"] for line in state.history)}

    def _folders(self) -> list[int]:
        """Return the numbers that have a folder, published or not."""
        return [int(name) for name in self._home.children() if name.isdigit()]

    def _time_of(self, number: int, claim: bytes) -> datetime.datetime:
        """Return when a claim was made.

        Raises:
            InputError: The claim is damaged.
        """
        try:
            when, _, _ = claim.decode().partition(" ")
            return datetime.datetime.fromisoformat(when).astimezone(datetime.UTC)
        except (ValueError, OverflowError):
            path = storage.below(self._home.address, str(number), _FILE)
            raise InputError(f"{path}: damaged; remove it if no publication is running") from None


def _token() -> bytes:
    return f"{now().isoformat()} {uuid.uuid4().hex}".encode()
