"""The newest verdict of the watch beside a version: a later night is never replaced, and the version stays as it is."""

import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.registry.test_registry import gate, home, make
from thyroid import storage
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, Artefact, sha256
from thyroid.records.watch import WatchEntry
from thyroid.registry import __main__ as commands
from thyroid.registry.beside import watches
from thyroid.registry.registry import BESIDE, Registry

FILE = "1/watch.json"


@pytest.fixture
def root(place, tmp_path) -> str:
    """A registry with one version."""
    Registry(place).publish(make(tmp_path / "artefact", 1000), gate())
    return place


def entry(root: str, night: str = "2025-07-14", verdict: str = "steady", **changes) -> WatchEntry:
    content = {
        "created": f"{night}T23:30:00+00:00",
        "night": night,
        "model": sha256(Registry(root).find("1", CARD) / CARD[0]),
        "verdict": verdict,
        "summary": "Nothing has changed.",
        "since": None,
        "code_version": "0.1.0",
    }
    return WatchEntry.parse(content | changes, "entry")


def test_the_verdict_is_kept_and_read_again(root, tmp_path):
    registry = Registry(root)
    assert watches.last(registry, 1) is None
    uri = registry.find("1")
    watches.record(registry, 1, given := entry(root))
    assert watches.last(registry, 1) == given
    Artefact.verify(registry.find("1"))
    assert registry.find("1") == uri, "another place would be another model to the endpoint"
    assert registry.publish(tmp_path / "artefact", gate()).version == 1
    if storage.is_bucket(root):
        assert not {path.name for path in uri.iterdir()} & set(BESIDE)


def test_a_later_night_stays(root):
    registry = Registry(root)
    first, again = entry(root), entry(root, created="2025-07-15T01:00:00+00:00", verdict="drift")
    later = entry(root, "2025-07-20")
    for given, kept in ((first, first), (again, again), (first, again), (later, later), (again, later)):
        watches.record(registry, 1, given)
        assert watches.last(registry, 1) == kept


def test_several_at_once_leave_the_latest(root):
    nights = [f"2025-07-{day:02d}" for day in range(1, 13)]
    given = [entry(root, night) for night in [*nights[::2], *nights[1::2]]]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: watches.record(Registry(root), 1, one), given))
    kept = watches.last(Registry(root), 1)
    assert kept is not None
    assert kept.night == nights[-1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"night": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_named_and_replaced(root, content, capsys):
    home(root).write(FILE, content)
    with pytest.raises(InputError, match=r"watch\.json: damaged: .*thyroid\.watch again"):
        watches.last(Registry(root), 1)
    assert commands.main(["list", "--registry", root]) == 0
    assert "damaged" in capsys.readouterr().out.splitlines()[1]
    assert commands.main(["show", "1", "--registry", root]) == 0
    assert "watch.json: damaged" in capsys.readouterr().out
    watches.record(Registry(root), 1, given := entry(root))
    assert watches.last(Registry(root), 1) == given


def test_a_field_of_a_newer_release_is_ignored(root):
    watches.record(Registry(root), 1, given := entry(root))
    data = home(root).read(FILE)[0]
    home(root).write(FILE, data.replace(b"{", b'{"mood": "calm", ', 1))
    assert watches.last(Registry(root), 1) == given


def test_another_model_or_version_is_refused(root):
    with pytest.raises(InputError, match="not the model that was watched"):
        watches.record(Registry(root), 1, entry(root, model="0" * 64))
    with pytest.raises(InputError, match="no registered model '2'"):
        watches.record(Registry(root), 2, entry(root))
    assert home(root).read(FILE)[1] == storage.ABSENT


def test_a_version_that_is_removed_meanwhile_leaves_nothing(root, monkeypatch):
    given, versions = entry(root), itertools.chain([[]])
    monkeypatch.setattr(Registry, "versions", lambda self: next(versions))
    with pytest.raises(InputError, match="removed in the meantime"):
        watches.record(Registry(root), 1, given)
    assert home(root).read(FILE)[1] == storage.ABSENT


def test_list_and_show_name_the_verdict(root, capsys):
    def said(*arguments: str) -> str:
        assert commands.main([*arguments, "--registry", root]) == 0
        return capsys.readouterr().out

    assert re.search(r"promoted +0 +- +candidate", said("list"))
    assert "watch: never" in said("show", "1")
    watches.record(Registry(root), 1, entry(root, verdict="drift", since="2025-07-10", summary="Other pictures."))
    assert re.search(r"promoted +0 +drift +candidate", said("list"))
    assert "watch on 2025-07-14: drift since 2025-07-10: Other pictures." in said("show", "1")
