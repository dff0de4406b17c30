"""The gate decides on a waiting candidate by the nightly watch, once."""

from pathlib import Path

import pytest

from tests.evaluate.shadow.test_gate import group, seen, waiting
from tests.support import toy_artefact, toy_locator
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact, sha256
from thyroid.records.gate import ShadowRecord
from thyroid.registry.registry import Registry
from thyroid.registry.shadow import kept
from thyroid.watch.shadow.settle import settle

BAD = group(flipped_patients=500)


@pytest.fixture
def registry(tmp_path) -> Registry:
    """A champion and a candidate whose gate waits."""
    registry = Registry(tmp_path / "registry")
    for name, gate in (("champion", toy_artefact.gate("promoted")), ("candidate", waiting())):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.keras").write_bytes(name.encode())
        decision = gate.model_copy(update={"champion": registry.champion()})
        registry.publish(toy_locator.build(folder), decision)
    return registry


def candidate(registry: Registry) -> Artefact:
    return Artefact.read(registry.find("2"))


def comparison(registry: Registry, *groups: dict, **changes) -> ShadowRecord:
    found = seen(*groups, **{"champion": 1, "candidate": 2} | changes)
    return found.model_copy(update={"model": sha256(registry.find("2") / "model.json")})


def test_a_waiting_version_is_the_candidate_and_not_the_champion(registry):
    assert registry.read_aliases() == {"candidate": 2, "champion": 1, "anchor": 1}
    assert candidate(registry).publication.gate.decision == "waiting"


def test_too_few_pictures_are_kept_and_decide_nothing(registry):
    found = settle(registry, candidate(registry), comparison(registry, pictures=7))
    assert found.decision is None
    assert kept.last(registry, 2).pictures == 7
    assert registry.champion() == 1


def test_enough_pictures_release_it_by_its_gate(registry):
    found = settle(registry, candidate(registry), comparison(registry))
    assert found.decision.decision == "accepted"
    assert kept.last(registry, 2) == found
    assert registry.read_aliases() == {"candidate": 2, "champion": 2, "previous": 1, "anchor": 1}
    line = registry.history()[-1]
    assert (line["action"], line["version"]) == ("release", 2)
    assert line["reason"] == "; ".join(found.decision.reasons)


def test_it_is_refused_once_and_for_all(registry):
    assert settle(registry, candidate(registry), comparison(registry, BAD)).decision.decision == "refused"
    later = comparison(registry, created="2025-07-15T12:00:00+00:00")
    assert settle(registry, candidate(registry), later).decision.decision == "refused"
    assert registry.champion() == 1
    assert kept.last(registry, 2).groups[0].flipped_patients == 500


def test_a_watch_that_was_killed_is_carried_out_the_next_time(registry, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(kept, "release", killed)
        with pytest.raises(KeyboardInterrupt):
            settle(registry, candidate(registry), comparison(registry))
    assert registry.champion() == 1
    settle(registry, candidate(registry), comparison(registry, created="2025-07-15T12:00:00+00:00"))
    assert registry.champion() == 2


def test_a_version_that_was_rolled_back_stays_so(registry):
    settle(registry, candidate(registry), comparison(registry))
    registry.roll_back("it was wrong", "somebody")
    settle(registry, candidate(registry), comparison(registry, created="2025-07-15T12:00:00+00:00"))
    assert registry.champion() == 1


def test_the_champion_that_changed_in_the_same_moment_is_not_replaced(registry):
    registry.promote("2", "by hand", "somebody")
    registry.promote("1", "by hand", "somebody")
    gate = waiting().model_copy(update={"champion": 2})
    with pytest.raises(InputError, match="the champion changed from 2 to 1"):
        kept.release(registry, 2, gate, "reason")


def test_a_damaged_file_is_replaced(registry):
    (Path(str(registry.root)) / "thyroid" / "2" / kept.FILE).write_text("{")
    assert settle(registry, candidate(registry), comparison(registry)).decision.decision == "accepted"


def test_a_candidate_that_does_not_wait_is_only_compared(registry, tmp_path):
    folder = tmp_path / "refused"
    folder.mkdir()
    (folder / "model.keras").write_bytes(b"refused")
    registry.publish(toy_locator.build(folder), toy_artefact.gate("refused", 1))
    refused = Artefact.read(registry.find("3"))
    found = comparison(registry, candidate=3).model_copy(update={"model": sha256(refused.folder / "model.json")})
    assert settle(registry, refused, found).decision is None
    assert kept.last(registry, 3) == found
    assert registry.champion() == 1
