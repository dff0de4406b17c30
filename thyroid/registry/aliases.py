"""The file aliases.json of a registry: its content, its hash, and its replacement by compare-and-swap.

`registry` describes the fields. Every change replaces exactly the file that it was based on. If another process was
faster, the change is decided again.
"""

import contextlib
import copy
import datetime
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from thyroid import storage
from thyroid.errors import InputError
from thyroid.records.gate import GateRecord
from thyroid.storage import ABSENT, ChangedError

CREATED = ("version", "created", "parent", "gate")
"""Fields that a publication adds to model.json."""

_ALIASES = ("candidate", "champion", "previous", "anchor", "waiting")
_FILE = "aliases.json"
_FIELDS = ("versions", "history", "readings")
_SEAL = "sha256"
_PAUSE = 0.2  # maximum seconds before a change is tried again because another process was faster

T = TypeVar("T")


@dataclass
class State:
    """The content of aliases.json without its hash.

    Attributes:
        content: The fields as they are written.
    """

    content: dict[str, Any]

    @property
    def versions(self) -> list[int]:
        """The published versions, oldest first."""
        return sorted(map(int, self.content["versions"]))

    @property
    def aliases(self) -> dict[str, int]:
        """Each alias and its version."""
        return {alias: self.content[alias] for alias in _ALIASES if alias in self.content}

    @property
    def champion(self) -> int | None:
        """The champion; None if there is none."""
        return self.content.get("champion")

    @property
    def history(self) -> list[dict[str, Any]]:
        """Every change of an alias and every deployment, oldest first."""
        entries: list[dict[str, Any]] = self.content["history"]
        return entries

    @property
    def earlier(self) -> list[int]:
        """Former champions that are still published and not refuted, without the present one, newest first."""
        champions = dict.fromkeys(line["aliases"].get("champion") for line in reversed(self.history))
        gone = {None, self.champion, *self.refuted}
        return [version for version in champions if version not in gone and str(version) in self.content["versions"]]

    @property
    def refuted(self) -> dict[int, str]:
        """The versions that a roll-back replaced, with its reason. The present champion is never among them."""
        refuted: dict[int, str] = {}
        champion: Any = None
        for line in self.history:
            if line["action"] == "rollback":
                refuted[champion] = line["reason"]
            champion = line["aliases"].get("champion")
            refuted.pop(champion, None)
        return refuted

    def number(self, which: str | None) -> int | None:
        """Return the number of a published version.

        Args:
            which: Number or alias; None for the champion, or for the candidate if there is no champion.

        Returns:
            The number; None if no such version is published.
        """
        aliases = self.aliases
        number = str(aliases.get("champion", aliases.get("candidate")) if which is None else aliases.get(which, which))
        return int(number) if number in self.content["versions"] else None

    def published_as(self, source: str) -> int | None:
        """Return the version that an artefact was published as; None if it was not.

        Args:
            source: SHA-256 of the artefact's model.json before its publication.
        """
        versions = self.content["versions"].items()
        return next((int(number) for number, version in versions if version["source"] == source), None)

    def deployments(self, version: int) -> set[str]:
        """Return which of the actions "sent" and "proven" the history has for a version."""
        return {line["action"] for line in self.history if line["version"] == version} & {"sent", "proven"}

    def set_champion(self, version: int) -> None:
        """Make a version the champion, and the present champion the previous one. No version waits any more."""
        self.content.pop("waiting", None)
        if "champion" in self.content and self.content["champion"] != version:
            self.content["previous"] = self.content["champion"]
        self.content["champion"] = version

    def release(self, version: int, gate: GateRecord) -> None:
        """Make a version the champion by its gate, and the anchor if it is shown to be better than the present one."""
        self.set_champion(version)
        if self.content.get("anchor") == gate.ahead_of:  # both are None for the first champion
            self.content["anchor"] = version

    def carry_out(self, gate: GateRecord) -> GateRecord:
        """Return a gate's decision; refused if it was made against another champion than the present one.

        A version that waits for live pictures keeps its place: if each new one took it, none would ever see enough.
        """
        if gate.decision in ("promoted", "waiting") and gate.champion != self.champion:
            reason = (
                f"the champion changed from {gate.champion} to {self.champion} after the evaluation; evaluate again"
            )
        elif gate.decision == "waiting" and "waiting" in self.content:
            reason = f"version {self.content['waiting']} waits for live pictures; evaluate again when they have decided"
        else:
            return gate
        return gate.model_copy(update={"decision": "refused", "reasons": [*gate.reasons, reason]})

    def add(self, number: int, hashes: dict[str, str], gate: GateRecord, is_candidate: bool = True) -> None:
        """Add a version, which becomes the candidate, and the champion, or the one that waits, if the gate says so.

        Args:
            number: Number of the version.
            hashes: SHA-256 of its model.json: "source" as it was given and "published" as it is in the registry.
            gate: Decision from `carry_out`.
            is_candidate: False for a version that is for one site only. Without a champion the candidate is served.
        """
        self.content["versions"][str(number)] = hashes
        if is_candidate:
            self.content["candidate"] = max(number, self.content.get("candidate", 0))
        if gate.decision == "promoted":
            self.release(number, gate)
        elif gate.decision == "waiting":
            self.content["waiting"] = number
        self.note("publish", number, "; ".join(gate.reasons))

    def note(self, action: str, version: int, reason: str, by: str = "pipeline") -> None:
        """Add a line to the history. Its id shows later whether a change was written although the answer got lost."""
        line = {"id": uuid.uuid4().hex, "when": now().isoformat(), "action": action, "version": version}
        self.history.append(line | {"by": by, "reason": reason, "aliases": self.aliases})


class AliasesFile:
    """aliases.json in a registry's folder.

    Args:
        home: Folder of the registry's versions.
    """

    def __init__(self, home: storage.Folder | storage.Bucket) -> None:
        """Keep the folder. Nothing is read yet."""
        self._home = home
        self._address = storage.below(home.address, _FILE)

    def read(self) -> State:
        """Return the content; an empty one if there is no file.

        Raises:
            InputError: The file is damaged.
        """
        return self._read()[0]

    def exists(self) -> bool:
        """Return whether the file exists.

        Raises:
            InputError: The file is damaged.
        """
        return self._read()[1] != ABSENT

    def change(self, decide: Callable[[State], T]) -> T:
        """Replace the content by what `decide` makes of it. If another process was faster, `decide` is called again.

        Returns:
            What `decide` returned when its change was written, or when it changed nothing.
        """
        tried: dict[str, T] = {}
        while True:
            state, generation = self._read()
            for line in state.history:
                if line["id"] in tried:  # the change was written, the answer got lost, and another change followed
                    return tried[line["id"]]
            before = copy.deepcopy(state)
            result = decide(state)
            if state == before:
                return result
            tried |= {line["id"]: result for line in state.history[len(before.history) :]}
            try:
                self._home.write(_FILE, sealed(state.content), generation)
            except ChangedError:
                time.sleep(random.uniform(0, _PAUSE))
            else:
                return result

    def _read(self) -> tuple[State, str]:
        """Return the content and its generation."""
        data, generation = self._home.read(_FILE)
        if generation == ABSENT:
            return State({"versions": {}, "history": [], "readings": []}), generation
        try:
            content = json.loads(data)
            if missing := [field for field in _FIELDS if not isinstance(content, dict) or field not in content]:
                raise InputError(f"{self._address}: field {missing[0]} is missing; restore the file from a backup")
            has_seal = content.pop(_SEAL, None) is not None
            if has_seal and data != sealed(content):
                raise InputError(
                    f"{self._address}: changed since it was written (sha256 differs); restore the file from a backup"
                )
        except ValueError as error:
            raise InputError(f"{self._address}: not JSON: {error}") from None
        return State(content if has_seal else self._upgrade(content)), generation

    def _upgrade(self, content: dict[str, Any]) -> dict[str, Any]:
        """Upgrade the content of a registry that has no hashes of aliases.json and model.json, and no anchor.

        The result is written with the next change. A model.json counts as unchanged only if it has the hash of the one
        that was given to `publish`, once the fields that the publication added are removed.

        Raises:
            InputError: A field does not belong to such a registry, so the file is damaged.
        """
        unknown = sorted(content.keys() - {*_FIELDS, *_ALIASES[:3]})
        unknown += [
            number for number, version in content["versions"].items() if not number.isdigit() or "source" not in version
        ]
        if unknown:
            raise InputError(f"{self._address}: field {unknown[0]} is unknown; restore the file from a backup")
        for number, version in content["versions"].items():
            card, version["published"] = self._home.read(f"{number}/model.json")[0], ""
            with contextlib.suppress(ValueError):
                given = {name: value for name, value in json.loads(card).items() if name not in CREATED}
                if hashlib.sha256(dump(given)).hexdigest() == version["source"]:
                    version["published"] = hashlib.sha256(card).hexdigest()
        return content | ({"anchor": content["champion"]} if "champion" in content else {})


def sealed(content: dict[str, Any]) -> bytes:
    """Return the content of aliases.json as it is written, with its hash."""
    return dump(content | {_SEAL: hashlib.sha256(dump(content)).hexdigest()})


def dump(content: dict[str, Any]) -> bytes:
    """Return JSON as the registry writes it: indented UTF-8 with a final newline."""
    return (json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def now() -> datetime.datetime:
    """Return the present time in UTC, in whole seconds."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
