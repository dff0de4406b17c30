"""The gate decides on a waiting candidate by the nightly watch, once."""

from pathlib import Path

import pytest

from tests.evaluate.shadow.test_gate import group, seen, waiting
from tests.support import toy_artefact, toy_locator
from thyroid.evaluate.shadow import gate
from thyroid.model.artefact import Artefact, sha256
from thyroid.records.gate import ShadowRecord
from thyroid.registry.beside import shadows
from thyroid.registry.registry import Registry
from thyroid.watch.shadow.settle import settle

BAD = group(flipped_patients=500)


@pytest.fixture
def registry(tmp_path) -> Registry:
    """A champion and a candidate whose gate waits."""
    registry = Registry(tmp_path / "registry")
    for name, record in (("champion", toy_artefact.gate("promoted")), ("candidate", waiting())):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.keras").write_bytes(name.encode())
        decision = record.model_copy(update={"champion": registry.champion()})
        registry.publish(toy_locator.build(folder), decision)
    return registry


def candidate(registry: Registry) -> Artefact:
    return Artefact.read(registry.find("2"))


def comparison(registry: Registry, *groups: dict, **changes) -> ShadowRecord:
    found = seen(*groups, **{"champion": 1, "candidate": 2} | changes)
    return found.model_copy(update={"model": sha256(registry.find("2") / "model.json")})


def test_a_waiting_version_is_the_candidate_and_not_the_champion(registry):
    assert registry.read_aliases() == {"candidate": 2, "champion": 1, "anchor": 1, "waiting": 2}
    assert candidate(registry).publication.gate.decision == "waiting"


def test_too_few_pictures_are_kept_and_decide_nothing(registry):
    found = settle(registry, candidate(registry), comparison(registry, pictures=7))
    assert found.decision is None
    assert shadows.last(registry, 2).pictures == 7
    assert registry.champion() == 1


def test_enough_pictures_release_it_by_its_gate(registry):
    found = settle(registry, candidate(registry), comparison(registry))
    assert found.decision.decision == "accepted"
    assert shadows.last(registry, 2) == found
    assert registry.read_aliases() == {"candidate": 2, "champion": 2, "previous": 1, "anchor": 1}
    line = registry.history()[-1]
    assert (line["action"], line["version"]) == ("release", 2)
    assert line["reason"] == "; ".join(found.decision.reasons)


def test_it_is_refused_once_and_for_all(registry):
    assert settle(registry, candidate(registry), comparison(registry, BAD)).decision.decision == "refused"
    later = comparison(registry, created="2025-07-15T12:00:00+00:00")
    assert settle(registry, candidate(registry), later).decision.decision == "refused"
    assert registry.champion() == 1
    assert shadows.last(registry, 2).groups[0].flipped_patients == 500
    assert "waiting" not in registry.read_aliases()
    (line,) = [line for line in registry.history() if line["action"] == "refuse"]
    assert "500 of 1000 patients (all pictures), against 2 of 100 stored ones" in line["reason"]
    (Path(str(registry.root)) / "thyroid" / "2" / "shadow.json").write_text("{")
    assert settle(registry, candidate(registry), comparison(registry)).decision is None, "nobody decides again"
    assert registry.champion() == 1


def test_what_another_watch_decided_in_the_meantime_holds(registry, monkeypatch):
    decide = gate.decide

    def late(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(gate, "decide", decide)
            settle(registry, candidate(registry), comparison(registry, BAD))
        return decide(*arguments)

    monkeypatch.setattr(gate, "decide", late)
    found = settle(registry, candidate(registry), comparison(registry, created="2025-07-15T12:00:00+00:00"))
    assert found.decision.decision == "refused"
    assert registry.champion() == 1
    assert [line["action"] for line in registry.history()] == ["publish", "publish", "refuse"]


def test_a_version_that_waits_keeps_its_place(registry, tmp_path):
    """If each night's candidate took it, none would ever see enough pictures."""
    for name, decision in (("waits", waiting()), ("refused", toy_artefact.gate("refused", 1))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.keras").write_bytes(name.encode())
        done = registry.publish(toy_locator.build(folder), decision.model_copy(update={"champion": 1}))
        assert done.gate.decision == "refused"
    third = Artefact.read(registry.find("3")).publication.gate
    assert third.reasons[-1] == "version 2 waits for live pictures; evaluate again when they have decided"
    assert registry.collect_garbage(1, delete=True) == [3]
    assert registry.read_aliases() == {"candidate": 4, "champion": 1, "anchor": 1, "waiting": 2}
    assert settle(registry, candidate(registry), comparison(registry)).decision.decision == "accepted"
    assert registry.champion() == 2


def test_a_watch_that_was_killed_is_carried_out_the_next_time(registry, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shadows, "carry_out", killed)
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


def test_somebody_who_makes_another_version_the_champion_ends_the_wait(registry):
    settle(registry, candidate(registry), comparison(registry))
    registry.promote("1", "by hand", "somebody")
    found = settle(registry, candidate(registry), comparison(registry, created="2025-07-15T12:00:00+00:00"))
    assert found.decision is None, "what was decided before does not hold any more"
    assert registry.champion() == 1


def test_a_champion_that_is_confirmed_by_hand_ends_the_wait(registry):
    registry.promote("champion", "no time to wait", "somebody")
    assert settle(registry, candidate(registry), comparison(registry)).decision is None
    assert registry.champion() == 1


def test_the_champion_that_changes_in_the_same_moment_is_not_replaced(registry, monkeypatch):
    verify = Artefact.verify

    def late(folder: Path) -> None:
        monkeypatch.setattr(Artefact, "verify", verify)
        registry.promote("champion", "by hand", "somebody")

    monkeypatch.setattr(Artefact, "verify", late)  # after the decision is kept
    assert settle(registry, candidate(registry), comparison(registry)).decision is None
    assert registry.champion() == 1


def test_a_damaged_file_is_replaced(registry):
    (Path(str(registry.root)) / "thyroid" / "2" / "shadow.json").write_text("{")
    assert settle(registry, candidate(registry), comparison(registry)).decision.decision == "accepted"


def test_a_candidate_that_does_not_wait_is_only_compared(registry, tmp_path):
    folder = tmp_path / "refused"
    folder.mkdir()
    (folder / "model.keras").write_bytes(b"refused")
    registry.publish(toy_locator.build(folder), toy_artefact.gate("refused", 1))
    refused = Artefact.read(registry.find("3"))
    found = comparison(registry, candidate=3).model_copy(update={"model": sha256(refused.folder / "model.json")})
    assert settle(registry, refused, found).decision is None
    assert shadows.last(registry, 3) == found
    assert registry.champion() == 1
