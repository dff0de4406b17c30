"""The artefact of a model, and the registry that keeps its versions: a folder, or gs://bucket/prefix.

    <root>/thyroid/<version>/      model.keras, model.json and its sum, reference.jpg, report.html, card.md, scans.csv
    <root>/thyroid/aliases.json    {"candidate": newest, "champion": passed the gate, "previous": champion before,
                                    "anchor": champion that candidates are compared with until one is shown to be better,
                                    "versions": {number: {"source": SHA-256 of model.json as it was given to `publish`,
                                                          "published": SHA-256 of model.json as it is here}},
                                    "history": every change of an alias, and what became of a version that was sent to a
                                               cluster: when, what, who and why,
                                    "readings": which models' gates have read which test set,
                                    "sha256": of all of the above as it is written}

Every file of a version has its hash in model.json, model.json has its own in aliases.json, and aliases.json has one of itself.

A version is there when aliases.json names it, which happens after its last file was written. Every change replaces the
aliases.json that it was decided on; if somebody else was faster, it is decided anew. `.claim` in a version's folder is that
of a publication on its way, or of one that was killed.

    python -m thyroid.registry {list,show,promote,rollback,gc} --registry DIR
"""

import argparse
import contextlib
import copy
import datetime
import getpass
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from thyroid import errors, storage
from thyroid.errors import InputError
from thyroid.model import artefacts
from thyroid.storage import ABSENT, ChangedError, Location

NAME = "thyroid"
_ALIASES = ("candidate", "champion", "previous", "anchor")
_STATE, _CLAIM = "aliases.json", ".claim"
_FIELDS = ("versions", "history", "readings")
_SEAL = "sha256"
_CREATED = ("version", "created", "parent", "gate")  # what a publication adds to model.json
_SHOWN = ("version", "created", "backbone", "serving_domain", "image_size", "parent", "gate", "forms", "threshold")
_STALE = datetime.timedelta(days=1)  # a publication takes minutes: what has not ended for longer was killed
_PAUSE = 0.2  # seconds at most, before a change is tried again that somebody else was faster than

State = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Registered:
    """A published version: `uri` is its folder or gs:// address, `sha256` that of model.keras, `gate` the decision as it was carried out."""

    name: str
    version: int
    uri: str
    sha256: str
    gate: dict[str, Any]


def publish(artefact: Path, root: Location, gate: dict[str, Any]) -> Registered:
    """Copy `artefact` into the registry as the next version: always the candidate, and the champion if the gate says so.

    An artefact that is published already is not published again, so that a step that is tried again registers nothing
    twice: its version is returned as it is, mended if a file was lost.

    Args:
        artefact: folder with model.json and the files it names.
        root: of the registry.
        gate: decision of `gate.decide`: decision, reasons, champion. If the champion has changed since it was decided,
            the version stays a candidate, and the reasons say so.

    Raises:
        InputError: the artefact is not whole, or the registry cannot be written.
    """
    given, source = artefacts.verify(artefact), artefacts.sha256(artefact / "model.json")
    home = _home(root)
    if (twin := _published(_read(home)[0], source)) is not None:
        try:
            artefacts.verify(find(root, str(twin)))
        except InputError:
            home.put(artefact, str(twin), list(given["files"]))
            home.write(f"{twin}/{artefacts.SUM}", artefacts.sum_of(_read(home)[0]["versions"][str(twin)]["published"]))
        return _registered(root, twin)
    number, claim = _claim(home)
    try:
        home.put(artefact, str(number), list(given["files"]))
    except OSError:  # a full disk; what else ends this here is cleared away by `collect_garbage`
        home.remove(str(number))
        raise

    def commit(state: State) -> int | None:
        if (twin := _published(state, source)) is not None:
            return twin
        if home.read(f"{number}/{_CLAIM}")[0] != claim:
            return None
        champion, decided = state.get("champion"), gate
        if gate["decision"] == "promoted" and gate["champion"] != champion:
            changed = f"the champion changed from {gate['champion']} to {champion} meanwhile: evaluate again"
            decided = gate | {"decision": "refused", "reasons": [*gate["reasons"], changed]}
        created = dict(zip(_CREATED, (number, _now().isoformat(), champion, decided), strict=True))
        card = _dump(given | created)
        published = hashlib.sha256(card).hexdigest()
        home.write(f"{number}/model.json", card)
        home.write(f"{number}/{artefacts.SUM}", artefacts.sum_of(published))
        state["versions"][str(number)] = {"source": source, "published": published}
        state["candidate"] = max(number, state.get("candidate", 0))
        if decided["decision"] == "promoted":
            _crown(state, number)
            if state.get("anchor") == decided.get("ahead_of"):  # both are None where this is the first champion
                state["anchor"] = number
        _note(state, "publish", number, "; ".join(decided["reasons"]))
        return number

    done = _change(home, commit)
    home.remove(f"{number}/{_CLAIM}" if done == number else str(number))
    return publish(artefact, root, gate) if done is None else _registered(root, done)


def promote(root: Location, which: str, reason: str, by: str) -> int:
    """Make a version the champion by hand, whatever its gate said; who and why is kept.

    It becomes the anchor, too: whoever answers for the champion answers for what later candidates are compared with.

    Raises:
        InputError: there is no such version, it was changed, or no reason or name is given.
    """
    if not reason.strip() or not by.strip():
        raise InputError("promotion by hand needs --reason and --by: they stay in the registry's history")
    home = _home(root)
    version = _number(root, _need(home), which)
    artefacts.verify(find(root, str(version)))

    def crown(state: State) -> int:
        _crown(state, _number(root, state, str(version)))
        state["anchor"] = version
        _note(state, "promote", version, reason, by)
        return version

    return _change(home, crown)


def roll_back(root: Location, reason: str, by: str, champion: int | None = None) -> int:
    """Make the previous champion the champion again, and return its version.

    The version that it replaces is refuted: no later roll-back returns to it, unless it is promoted by hand in between, and it
    is no anchor any more.

    Args:
        root: of the registry.
        reason: stays in the history.
        by: who answers for it.
        champion: version that is to go; if the champion is another one by now, nothing is changed.

    Raises:
        InputError: there is no previous champion, or it was changed.
    """
    home = _home(root)
    _need(home)

    def swap(state: State) -> int:
        if champion is not None and state.get("champion") != champion:
            return state["champion"]
        if not (earlier := _earlier(state)):
            raise InputError(f"{root}: no previous champion to roll back to")
        refuted, version = state["champion"], earlier[0]
        state["champion"] = version
        if state["anchor"] == refuted:
            state["anchor"] = version
        artefacts.verify(find(root, str(version)))
        state.pop("previous", None)
        if earlier[1:]:
            state["previous"] = earlier[1]
        _note(state, "rollback", version, reason, by)
        return version

    return _change(home, swap)


def collect_garbage(root: Location, keep: int, delete: bool = False) -> list[int]:
    """Versions that nothing needs: no alias names them and they are not among the newest `keep`; removed with `delete`.

    What a publication left that was killed more than a day ago goes, too.

    Raises:
        InputError: `keep` is below 1 (the newest version's number must not be given away again).
    """
    if keep < 1:
        raise InputError(f"--keep {keep}: at least the newest version stays")
    home = _home(root)
    left: set[int] = set()

    def drop(state: State) -> list[int]:
        there = _versions(state)
        going = [one for one in there if one not in {*there[-keep:], *_aliases(state).values()}]
        if not delete:
            return going
        left.update(_take_over(home, state))
        left.difference_update(there)
        for version in going:
            home.write(f"{version}/{_CLAIM}", _token())  # so that the next one removes it if this one is killed
            del state["versions"][str(version)]
        if going or left:
            told = ", ".join([*map(str, going), *(f"{one} (half-written)" for one in sorted(left))])
            _note(state, "gc", max([*going, *left]), f"removed {told}")
        return going

    going = _change(home, drop)
    if delete:
        for version in (*going, *left):
            home.remove(str(version))
    return going


def read_test_set(root: Location | None, test_digest: str, model: str) -> int:
    """Note that a model's gate reads a test set; returns how many other models' gates have read it before.

    The more there were, the less a good figure on it means. Evaluations that are never registered count, too.

    Args:
        root: of the registry; None where there is none to note it in.
        test_digest: of `gate.test_digest`.
        model: SHA-256 of the model's file.
    """
    if root is None:
        return 0
    reading = {"test_digest": test_digest, "model": model}

    def add(state: State) -> int:
        if reading not in state["readings"]:
            state["readings"].append(reading)
        return len({one["model"] for one in state["readings"] if one["test_digest"] == test_digest} - {model})

    return _change(_home(root), add)


def note_deployment(root: Location, action: Literal["sent", "proven"], version: int, reason: str) -> None:
    """Note in the history that a version goes to a cluster, or that it has proven itself there; each is noted once."""

    def note(state: State) -> None:
        if action not in _deployments(state, version):
            _note(state, action, version, reason, "deploy")

    _change(_home(root), note)


def is_unproven(root: Location, version: int) -> bool:
    """Whether a version was sent to a cluster and has proven itself in none: its deployment failed, or was killed."""
    return _deployments(_read(_home(root))[0], version) == {"sent"}


def earlier(root: Location) -> list[int]:
    """Champions before this one that a roll-back may return to, the newest first."""
    return _earlier(_read(_home(root))[0])


def refuted(root: Location) -> dict[int, str]:
    """Versions that a roll-back took away and that nobody has promoted since, each with the roll-back's reason."""
    return _refuted(_read(_home(root))[0])


def history(root: Location) -> list[dict[str, Any]]:
    """Every change of the aliases and every deployment, oldest first: id, when, action, version, by, reason and aliases."""
    return _read(_home(root))[0]["history"]


def versions(root: Location) -> list[int]:
    """Published versions, oldest first."""
    return _versions(_read(_home(root))[0])


def read_aliases(root: Location) -> dict[str, int]:
    """Alias to version; empty for a new registry."""
    return _aliases(_read(_home(root))[0])


def find(root: Location, which: str | None = None, only: Sequence[str] = ()) -> Path:
    """Folder of a version or alias, whose model.json is the one that was published.

    Args:
        root: of the registry.
        which: number or alias; None for the champion, or the candidate where there is none.
        only: files that are needed, with model.json among them; of a bucket no others are downloaded, and all of them are
            compared with their hashes. Without it the other files are left to `verify`.

    Raises:
        InputError: there is no such version, or one of these files is missing or was changed.
    """
    folder = locate(root, which, only)
    check(root, folder)
    if only:
        files = artefacts.facts(folder)["files"]
        artefacts.verify_files(folder, {name: files[name] for name in only if name in files})
    return folder


def locate(root: Location, which: str | None = None, only: Sequence[str] = ()) -> Path:
    """Folder of a version or alias as `find`, for those who look into it later and `check` it then."""
    home = _home(root)
    return home.get(str(_number(root, _read(home)[0], which)), only)


def check(root: Location, folder: Path) -> None:
    """Look whether the model.json of a folder that `locate` gave is one that was published.

    Raises:
        InputError: it is missing or was changed.
    """
    card = folder / "model.json"
    if not card.is_file():
        raise InputError(f"{folder}: not a registered model (model.json is missing)")
    if artefacts.sha256(card) not in {one["published"] for one in _read(_home(root))[0]["versions"].values()}:
        mend = "remove this copy of the bucket's object" if storage.is_bucket(root) else "put back a copy of this file"
        raise InputError(f"{card}: changed since it was registered (sha256 differs); {mend}")


def address(root: Location, version: int) -> str:
    """Where a version is: a path, or gs://."""
    return storage.below(_home(root).address, str(version))


def _home(root: Location) -> storage.Folder | storage.Bucket:
    if not str(root):
        raise InputError("registry: give a folder, or gs://bucket/prefix")
    return storage.at(storage.below(root, NAME))


def _read(home: storage.Folder | storage.Bucket) -> tuple[State, str]:
    """The state and its generation.

    Raises:
        InputError: the file is damaged.
    """
    data, generation = home.read(_STATE)
    if generation == ABSENT:
        return {"versions": {}, "history": [], "readings": []}, generation
    file = storage.below(home.address, _STATE)
    try:
        state = json.loads(data)
        if missing := [field for field in _FIELDS if not isinstance(state, dict) or field not in state]:
            raise InputError(f"{file}: field {missing[0]} is missing; put back a copy of the file that has it")
        sealed = state.pop(_SEAL, None) is not None
        if sealed and data != _seal(state):
            raise InputError(f"{file}: changed since it was written (sha256 differs); put back a copy of the file")
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    return (state if sealed else _upgrade(home, state)), generation


def _seal(state: State) -> bytes:
    """The state as it is written, with its hash."""
    return _dump(state | {_SEAL: hashlib.sha256(_dump(state)).hexdigest()})


def _upgrade(home: storage.Folder | storage.Bucket, state: State) -> State:
    """The state of a registry from before there were hashes of aliases.json and model.json, and an anchor.

    It is written with the next change. A model.json that was changed since it was published is not taken for whole: without
    what the publication added to it, it must have the hash of the one that was given.

    Raises:
        InputError: a field is none of such a registry's, so that this is a damaged state.
    """
    file = storage.below(home.address, _STATE)
    unknown = sorted(state.keys() - {*_FIELDS, *_ALIASES[:3]})
    unknown += [
        number for number, version in state["versions"].items() if not number.isdigit() or "source" not in version
    ]
    if unknown:
        raise InputError(f"{file}: field {unknown[0]} is unknown; put back a copy of the file")
    for number, version in state["versions"].items():
        card, version["published"] = home.read(f"{number}/model.json")[0], ""
        with contextlib.suppress(ValueError):
            given = {name: value for name, value in json.loads(card).items() if name not in _CREATED}
            if hashlib.sha256(_dump(given)).hexdigest() == version["source"]:
                version["published"] = hashlib.sha256(card).hexdigest()
    return state | ({"anchor": state["champion"]} if "champion" in state else {})


def _need(home: storage.Folder | storage.Bucket) -> State:
    """The state of a registry that is there."""
    state, generation = _read(home)
    if generation == ABSENT:
        raise InputError(f"{home.address.removesuffix(f'/{NAME}')}: no registry here; `make run` makes one")
    return state


def _change(home: storage.Folder | storage.Bucket, decide: Callable[[State], T]) -> T:
    """Replace the state by what `decide` makes of it, which is asked again whenever somebody else was faster.

    Returns:
        What `decide` returned when its change was made, or when it changed nothing.
    """
    tried: dict[str, T] = {}
    while True:
        state, generation = _read(home)
        for line in state["history"]:
            if line["id"] in tried:  # it was made, the answer was lost, and somebody else has made another one since
                return tried[line["id"]]
        before = copy.deepcopy(state)
        result = decide(state)
        if state == before:
            return result
        tried |= {line["id"]: result for line in state["history"][len(before["history"]) :]}
        try:
            home.write(_STATE, _seal(state), generation)
        except ChangedError:
            time.sleep(random.uniform(0, _PAUSE))
        else:
            return result


def _claim(home: storage.Folder | storage.Bucket) -> tuple[int, bytes]:
    """A number that nobody else has or had, and what stands in its claim."""
    number, claim = max([*_used(home), *_folders(home)], default=0) + 1, _token()
    while True:
        try:
            home.write(f"{number}/{_CLAIM}", claim, ABSENT)
        except ChangedError:
            number += 1
            continue
        if number not in _used(home):
            return number, claim
        home.remove(f"{number}/{_CLAIM}")  # claimed, published and the claim removed since we looked
        number += 1


def _used(home: storage.Folder | storage.Bucket) -> set[int]:
    """Numbers that are or were published, and those of leftovers that were cleared away."""
    state = _read(home)[0]
    return {*_versions(state), *(line["version"] for line in state["history"])}


def _take_over(home: storage.Folder | storage.Bucket, state: State) -> list[int]:
    """Numbers of killed publications, whose claims become ours; claims of what is published are removed."""
    taken = []
    for number in _folders(home):
        claim, generation = home.read(f"{number}/{_CLAIM}")
        if not claim:
            continue
        if str(number) in state["versions"]:
            home.remove(f"{number}/{_CLAIM}")
        elif _now() - _claimed(home, number, claim) > _STALE:
            try:
                home.write(f"{number}/{_CLAIM}", _token(), generation)
            except ChangedError:
                continue
            taken.append(number)
    return taken


def _claimed(home: storage.Folder | storage.Bucket, number: int, claim: bytes) -> datetime.datetime:
    """When a claim was made.

    Raises:
        InputError: it is damaged.
    """
    try:
        when, _, _ = claim.decode().partition(" ")
        return datetime.datetime.fromisoformat(when).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        file = storage.below(home.address, str(number), _CLAIM)
        raise InputError(f"{file}: damaged; remove it if no publication is running") from None


def _folders(home: storage.Folder | storage.Bucket) -> list[int]:
    """Numbers that have a folder, published or not."""
    return [int(name) for name in home.children() if name.isdigit()]


def _token() -> bytes:
    return f"{_now().isoformat()} {uuid.uuid4().hex}".encode()


def _published(state: State, source: str) -> int | None:
    """The version that an artefact was published as."""
    return next((int(n) for n, version in state["versions"].items() if version["source"] == source), None)


def _registered(root: Location, version: int) -> Registered:
    told = artefacts.facts(find(root, str(version), artefacts.CARD), ("gate",))
    return Registered(NAME, version, address(root, version), told["files"][artefacts.MODEL], told["gate"])


def _versions(state: State) -> list[int]:
    return sorted(map(int, state["versions"]))


def _aliases(state: State) -> dict[str, int]:
    return {alias: state[alias] for alias in _ALIASES if alias in state}


def _number(root: Location, state: State, which: str | None) -> int:
    """Number of a version or alias, as `find` takes it."""
    aliases = _aliases(state)
    number = str(aliases.get("champion", aliases.get("candidate")) if which is None else aliases.get(which, which))
    if number not in state["versions"]:
        raise InputError(
            f"{root}: no registered model{'' if which is None else ' ' + repr(which)}; `make run` registers one"
        )
    return int(number)


def _earlier(state: State) -> list[int]:
    """As `earlier`: of what was the champion, what is still published, and neither refuted nor the champion now."""
    crowned = dict.fromkeys(line["aliases"].get("champion") for line in reversed(state["history"]))
    gone = {None, state.get("champion"), *_refuted(state)}
    return [one for one in crowned if one not in gone and str(one) in state["versions"]]


def _refuted(state: State) -> dict[int, str]:
    """As `refuted`; whoever is the champion is not refuted."""
    gone: dict[int, str] = {}
    champion: Any = None
    for line in state["history"]:
        if line["action"] == "rollback":
            gone[champion] = line["reason"]
        champion = line["aliases"].get("champion")
        gone.pop(champion, None)
    return gone


def _deployments(state: State, version: int) -> set[str]:
    """What `note_deployment` has noted of a version."""
    return {line["action"] for line in state["history"] if line["version"] == version} & {"sent", "proven"}


def _crown(state: State, version: int) -> None:
    """Make a version the champion."""
    if "champion" in state and state["champion"] != version:
        state["previous"] = state["champion"]
    state["champion"] = version


def _note(state: State, action: str, version: int, reason: str, by: str = "pipeline") -> None:
    """Add a line to the history; its id tells whether a change of which no answer came was made."""
    line = {"id": uuid.uuid4().hex, "when": _now().isoformat(), "action": action, "version": version}
    state["history"].append(line | {"by": by, "reason": reason, "aliases": _aliases(state)})


def _dump(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InputError("this user has no name here; say who answers for it with --by") from None


def _list(root: Location) -> None:
    names: dict[int, list[str]] = {}
    for alias, version in read_aliases(root).items():
        names.setdefault(version, []).append(alias)
    print(f"{'version':<9}{'created':<27}{'backbone':<16}{'domain':<9}{'test AUROC':<24}{'gate':<10}aliases")
    for version in versions(root):
        try:
            one = _described(root, str(version))
        except InputError as error:
            print(f"{version:<9}damaged: {error}")
            continue
        auroc = one["forms"]["keras"]["test"][one["serving_domain"]]["auroc"]
        shown = f"{auroc['value']:.3f}" + (
            "" if auroc["low"] is None else f" [{auroc['low']:.3f}, {auroc['high']:.3f}]"
        )
        print(
            f"{version:<9}{one['created']:<27}{one['backbone']:<16}{one['serving_domain']:<9}{shown:<24}"
            f"{one['gate']['decision']:<10}{', '.join(names.get(version, []))}"
        )


def _described(root: Location, which: str) -> dict[str, Any]:
    """What the commands show of a version; the files of a bucket's, which would all be downloaded, are not looked at."""
    if storage.is_bucket(root):
        return artefacts.facts(find(root, which, artefacts.CARD), _SHOWN)
    return artefacts.verify(find(root, which), _SHOWN)


def _show(root: Location, which: str) -> None:
    one = _described(root, which)
    auroc = one["forms"]["keras"]["test"][one["serving_domain"]]["auroc"]
    print(f"version {one['version']} of {one['created']}: {address(root, one['version'])}")
    print(f"{one['backbone']} on {one['domain']} images, {one['image_size']} px, code {one['code_version']}")
    print(f"data {one['data_digest'][:12]}, parent {one['parent'] or 'none'}")
    print(f"test AUROC {auroc['value']:.3f}, threshold {one['threshold']:.4f}, temperature {one['temperature']:.3f}")
    print(f"gate: {one['gate']['decision']}")
    for reason in one["gate"]["reasons"]:
        print(f"  {reason}")
    for criterion in one["gate"].get("criteria", []):
        word = "holds" if criterion["passed"] else "waived" if criterion["waived"] else "FAILS"
        print(f"  {word:<7}{criterion['name']}: {criterion['found']} (asked: {criterion['asked']})")
    for line in history(root):
        if line["version"] == one["version"]:
            print(f"{line['when']} {line['action']} by {line['by']}: {line['reason']}")


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thyroid.registry", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--registry", required=True, help="root of the registry: a folder, or gs://bucket/prefix")
    who = argparse.ArgumentParser(add_help=False)
    who.add_argument("--reason", required=True, help="stays in the registry's history")
    who.add_argument("--by", help="who answers for it; default: the user's name")
    commands.add_parser("list", parents=[common], help="every version, its gate and its aliases")
    showing = commands.add_parser("show", parents=[common], help="one version: figures and gate")
    showing.add_argument("version", help="number or alias")
    promoting = commands.add_parser("promote", parents=[common, who], help="make a version the champion by hand")
    promoting.add_argument("version", help="number or alias")
    commands.add_parser("rollback", parents=[common, who], help="make the previous champion the champion again")
    collecting = commands.add_parser("gc", parents=[common], help="what nothing needs any more; removed with --delete")
    collecting.add_argument("--keep", type=int, default=5, help="newest versions to keep beside those with an alias")
    collecting.add_argument("--delete", action="store_true")
    chosen = parser.parse_args(argv)
    root = chosen.registry
    if chosen.command == "list":
        _list(root)
    elif chosen.command == "show":
        _show(root, chosen.version)
    elif chosen.command == "promote":
        print(f"champion: version {promote(root, chosen.version, chosen.reason, chosen.by or _user())}")
    elif chosen.command == "rollback":
        print(f"champion: version {roll_back(root, chosen.reason, chosen.by or _user())}")
    else:
        going = collect_garbage(root, chosen.keep, chosen.delete)
        word = "removed" if chosen.delete else "would be removed (with --delete)"
        print(f"{word}: {', '.join(map(str, going)) or 'nothing'}")
