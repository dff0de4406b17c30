"""The registry, which keeps every published version of the model: a folder, or a gs:// or s3:// prefix.

    <root>/thyroid/<version>/      model.keras, model.json and its sum, reference.jpg, report.html, card.md, scans.csv
    <root>/thyroid/<version>/      validations.*, shadow.json and watch.json, found since; they are under no hash
    <root>/thyroid/aliases.json    {"candidate": newest version that is for all sites,
                                    "champion": version that passed the gate, or was promoted by hand,
                                    "previous": champion before it,
                                    "anchor": champion with which candidates are compared until one proves better,
                                    "waiting": version on which live pictures decide, while this champion is served,
                                    "versions": {number: {"source": SHA-256 of model.json as `publish` received it,
                                                          "published": SHA-256 of model.json as it is here}},
                                    "history": every change of an alias and every deployment: when, what, who and why,
                                    "readings": which models' gates have read which test set,
                                    "sha256": hash of all of the above as it is written}

The hashes form a chain: model.json has the hash of every other file of a version, aliases.json has the hash of every
model.json, and aliases.json also has a hash of itself.

A version exists when aliases.json names it, which happens after its last file was written. `aliases` replaces that
file, and `claims` reserves the numbers of publications that are in progress.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from thyroid import storage
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, MODEL, SUM, Artefact, sha256, sum_of
from thyroid.records.gate import GateRecord
from thyroid.records.model import Publication
from thyroid.registry.aliases import AliasesFile, State, dump, now
from thyroid.registry.claims import Claims

MODEL_NAME = "thyroid"
"""Name of the model: in the registry, as served by the endpoint, and of its InferenceService."""
BESIDE = ("validations.json", "validations.md", "shadow.json", "watch.json")
"""Files in a version's folder that are written after its publication, and are not part of the artefact."""


@dataclass(frozen=True)
class Registered:
    """A published version.

    Attributes:
        name: Name of the model.
        version: Number of the version.
        uri: Folder, gs:// or s3:// address of the version.
        sha256: SHA-256 of model.keras.
        gate: The gate's decision as it was carried out.
    """

    name: str
    version: int
    uri: str
    sha256: str
    gate: GateRecord


class Registry:
    """The registry below one root.

    Every call reads aliases.json again, since other processes change it. Every method raises `InputError` if that file
    is damaged.

    Attributes:
        root: Root of the registry: a folder, or a gs:// or s3:// prefix. It need not exist yet.

    Raises:
        InputError: The root is empty or malformed, or is a bucket and its client is not installed.
    """

    def __init__(self, root: storage.Location) -> None:
        """Keep the root. Nothing is read yet."""
        if not str(root):
            raise InputError("registry: give a folder, gs://bucket/prefix or s3://bucket/prefix")
        self.root = root
        self._home = storage.at(storage.below(root, MODEL_NAME))
        self._aliases = AliasesFile(self._home)
        self._claims = Claims(self._home, self._aliases)

    def publish(self, artefact: Path, gate: GateRecord) -> Registered:
        """Copy `artefact` into the registry as the next version.

        The version becomes the candidate, unless it is for one site, and the champion if the gate says so. A step that
        is retried registers no model twice: it gets the version that the artefact has, repaired if a file was lost.

        Args:
            artefact: Folder with model.json and the files it names.
            gate: Decision of `gate.decide`. If the champion has changed since the
                decision, the version stays a candidate, and the reasons say so.

        Returns:
            The published version.

        Raises:
            InputError: The artefact is incomplete, or the registry cannot be written.
        """
        given, source = Artefact.verify(artefact), sha256(artefact / "model.json")
        files = list(given.record.files)
        if (twin := self._aliases.read().published_as(source)) is not None:
            self._repair(twin, artefact, files)
            return self._registered(twin)
        number, claim = self._claims.make()
        try:
            self._home.put(artefact, str(number), files)
        except OSError:  # such as a full disk; `collect_garbage` removes what any other interruption leaves
            self._home.remove(str(number))
            raise

        def commit(state: State) -> int | None:
            if (twin := state.published_as(source)) is not None:
                return twin
            if not self._claims.holds(number, claim):
                return None
            self._add(state, number, given, source, state.carry_out(gate))
            return number

        done = self._aliases.change(commit)
        if done == number:
            self._claims.release(number)
        else:
            self._home.remove(str(number))
        return self.publish(artefact, gate) if done is None else self._registered(done)

    def promote(self, which: str, reason: str, by: str) -> int:
        """Make a version the champion by hand, whatever its gate said. Who did so and why is kept in the history.

        The version also becomes the anchor, with which later candidates are compared.

        Args:
            which: Number or alias of the version.
            reason: Reason, which stays in the history.
            by: Name of the person who answers for it.

        Returns:
            The number of the version.

        Raises:
            InputError: There is no such version, it was changed, or the reason or the name is empty.
        """
        if not reason.strip() or not by.strip():
            raise InputError("a manual promotion needs --reason and --by, which are kept in the registry's history")
        self._check_exists()
        version = self._number(self._aliases.read(), which)
        Artefact.verify(self.find(str(version)))

        def set_champion(state: State) -> int:
            state.set_champion(self._number(state, str(version)))
            state.content["anchor"] = version
            state.note("promote", version, reason, by)
            return version

        return self._aliases.change(set_champion)

    def roll_back(self, reason: str, by: str, champion: int | None = None) -> int:
        """Make the previous champion the champion again.

        The version that it replaces counts as refuted: no later roll-back returns to it unless somebody promotes it by
        hand in between, and it is no longer the anchor.

        Args:
            reason: Reason, which stays in the history.
            by: Name of the person who answers for it.
            champion: Version to replace. If the champion is another one by now, nothing is changed. None replaces any
                champion.

        Returns:
            The version that is the champion now.

        Raises:
            InputError: There is no previous champion, or it was changed.
        """
        self._check_exists()

        def swap(state: State) -> int:
            content, present, earlier = state.content, state.champion, state.earlier
            if champion is not None and present not in (None, champion):
                return present
            if not earlier:
                raise InputError(f"{self.root}: no previous champion to roll back to")
            state.set_champion(version := earlier[0])
            if content["anchor"] == present:
                content["anchor"] = version
            Artefact.verify(self.find(str(version)))
            content.pop("previous", None)
            if earlier[1:]:
                content["previous"] = earlier[1]
            state.note("rollback", version, reason, by)
            return version

        return self._aliases.change(swap)

    def collect_garbage(self, keep: int, delete: bool = False) -> list[int]:
        """List versions that are no longer needed: no alias names them, and they are not among the newest `keep`.

        With `delete` they are removed, together with what is left of publications that were killed more than a day ago.

        Args:
            keep: Number of newest versions to keep; at least 1, because the newest number must not be assigned again.
            delete: Remove the versions.

        Returns:
            The versions that are not needed.

        Raises:
            InputError: `keep` is below 1.
        """
        if keep < 1:
            raise InputError(f"--keep {keep}: give at least 1, because the newest version must stay")
        leftovers: set[int] = set()

        def drop(state: State) -> list[int]:
            published = state.versions
            going = [version for version in published if version not in {*published[-keep:], *state.aliases.values()}]
            if not delete:
                return going
            leftovers.update(self._claims.take_over(state))
            leftovers.difference_update(published)
            for version in going:
                self._claims.mark(version)
                del state.content["versions"][str(version)]
            if going or leftovers:
                names = [*map(str, going), *(f"{number} (half-written)" for number in sorted(leftovers))]
                state.note("gc", max([*going, *leftovers]), f"removed {', '.join(names)}")
            return going

        going = self._aliases.change(drop)
        if delete:
            for version in (*going, *leftovers):
                self._home.remove(str(version))
        return going

    def read_test_set(self, test_digest: str, model: str) -> int:
        """Note that a model's gate reads a test set, and return how many other models' gates have read it before.

        The more there were, the less a good metric on this test set means. Evaluations that are never registered count
        as well.

        Args:
            test_digest: Digest of the test set from `gate.test_digest`.
            model: SHA-256 of the model's file.

        Returns:
            The number of other models.
        """
        reading = {"test_digest": test_digest, "model": model}

        def add(state: State) -> int:
            readings = state.content["readings"]
            if reading not in readings:
                readings.append(reading)
            return len({other["model"] for other in readings if other["test_digest"] == test_digest} - {model})

        return self._aliases.change(add)

    def note_deployment(self, action: Literal["sent", "proven"], version: int, reason: str) -> None:
        """Note once in the history that a version was sent to a cluster, or that it has proven itself there.

        Args:
            action: "sent" or "proven".
            version: Number of the version.
            reason: Text for the history.
        """

        def note(state: State) -> None:
            if action not in state.deployments(version):
                state.note(action, version, reason, "deploy")

        self._aliases.change(note)

    def is_unproven(self, version: int) -> bool:
        """Return whether a version was sent to a cluster but its deployment failed or was killed."""
        return self._aliases.read().deployments(version) == {"sent"}

    def earlier(self) -> list[int]:
        """Return the earlier champions that a roll-back may return to, newest first."""
        return self._aliases.read().earlier

    def refuted(self) -> dict[int, str]:
        """Return the versions that a roll-back replaced and that were not promoted since, with its reason."""
        return self._aliases.read().refuted

    def history(self) -> list[dict[str, Any]]:
        """Return the changes and deployments, oldest first: id, when, action, version, by, reason, aliases of each."""
        return self._aliases.read().history

    def versions(self) -> list[int]:
        """Return the published versions, oldest first."""
        return self._aliases.read().versions

    def read_aliases(self) -> dict[str, int]:
        """Map each alias to its version. The result is empty for a new registry."""
        return self._aliases.read().aliases

    def champion(self) -> int | None:
        """Return the champion; None if no model is released yet."""
        return self._aliases.read().champion

    def find(self, which: str | None = None, only: Sequence[str] = ()) -> Path:
        """Return the folder of a version or alias, after a check that its model.json is the one that was published.

        Args:
            which: Number or alias; None for the champion, or for the candidate if there is no champion.
            only: Files that are needed, model.json among them. Each of them is compared with its hash, and other files
                of a bucket are not downloaded. If it is empty, the check of the other files is left to
                `Artefact.verify`.

        Returns:
            The folder; for a bucket, a local copy.

        Raises:
            InputError: There is no such version, or one of these files is missing or was changed.
        """
        folder = self.locate(which, only)
        self.check(folder)
        if only:
            Artefact.read(folder).verify_files(only)
        return folder

    def locate(self, which: str | None = None, only: Sequence[str] = ()) -> Path:
        """Return the folder of a version or alias like `find`, but unchecked.

        It is meant for callers that read the folder later and call `check` then.

        Args:
            which: Number or alias, as for `find`.
            only: Files that are needed, as for `find`. Of a bucket no others are downloaded.

        Returns:
            The folder; for a bucket, a local copy, which is without `BESIDE` and so stays the same.

        Raises:
            InputError: There is no such version.
        """
        number = str(self._number(self._aliases.read(), which))
        if not only and isinstance(self._home, storage.Bucket):
            names = [entry.name.removeprefix(f"{number}/") for entry in self._home.entries(f"{number}/")]
            only = [name for name in names if name not in BESIDE and not name.startswith(".")]
        return self._home.get(number, only)

    def check(self, folder: Path) -> None:
        """Check that the model.json of a folder from `locate` is one that was published.

        Args:
            folder: Folder from `locate`.

        Raises:
            InputError: The file is missing or was changed.
        """
        card = folder / "model.json"
        if not card.is_file():
            raise InputError(f"{folder}: not a registered model (model.json is missing)")
        published = {version["published"] for version in self._aliases.read().content["versions"].values()}
        if sha256(card) not in published:
            in_bucket = storage.is_bucket(self.root)
            repair = "remove this local copy of the bucket's object" if in_bucket else "restore this file from a backup"
            raise InputError(f"{card}: changed since it was registered (sha256 differs); {repair}")

    def address(self, version: int) -> str:
        """Return where a version is: a path, or a gs:// or s3:// address."""
        return storage.below(self._home.address, str(version))

    def _check_exists(self) -> None:
        """Raise InputError if there is no registry."""
        if not self._aliases.exists():
            address = self._home.address.removesuffix(f"/{MODEL_NAME}")
            raise InputError(f"{address}: there is no registry here; `make run` creates one")

    def _number(self, state: State, which: str | None) -> int:
        """Return the number of a version or alias, as `find` takes it."""
        if (number := state.number(which)) is None:
            name = "" if which is None else f" {which!r}"
            raise InputError(f"{self.root}: no registered model{name}; `make run` registers one")
        return number

    def _repair(self, version: int, artefact: Path, files: list[str]) -> None:
        """Copy the files of a published artefact again if one was lost or changed."""
        try:
            Artefact.verify(self.find(str(version)))
        except InputError:
            self._home.put(artefact, str(version), files)
            published = self._aliases.read().content["versions"][str(version)]["published"]
            self._home.write(f"{version}/{SUM}", sum_of(published))

    def _add(self, state: State, number: int, given: Artefact, source: str, gate: GateRecord) -> None:
        """Write model.json of a version whose other files are in place, and add the version to the state."""
        parent = given.record.recalibrated_from or state.champion
        added = Publication(version=number, created=now().isoformat(), parent=parent, gate=gate)
        self._home.write(f"{number}/model.json", card := dump(given.record.to_dict() | added.to_dict()))
        published = hashlib.sha256(card).hexdigest()
        self._home.write(f"{number}/{SUM}", sum_of(published))
        state.add(number, {"source": source, "published": published}, gate, given.record.recalibrated_for is None)

    def _registered(self, version: int) -> Registered:
        artefact = Artefact.read(self.find(str(version), CARD))
        gate = artefact.publication.gate
        return Registered(MODEL_NAME, version, self.address(version), artefact.record.files[MODEL], gate)
