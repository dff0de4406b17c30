"""The command retention with a decision log: a patient is found under every key, and old days go by age."""

import pytest

from tests.conftest import write_scan
from tests.registry.test_retention import House
from tests.support.decisions import decision, write
from thyroid import retention as command
from thyroid.data import pseudonyms
from thyroid.data.store import Version
from thyroid.data.version import DataVersion
from thyroid.watch import log

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def house(tmp_path, scans, monkeypatch) -> House:
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)
    house = House(tmp_path / "house", scans)
    house.model(house.night())
    return house


@pytest.fixture
def scans(tmp_path):
    (tmp_path / "house").mkdir()
    folder = tmp_path / "scans"
    folder.mkdir()
    for patient in range(1, 13):
        write_scan(folder / f"{'BM'[patient % 2]}_{patient:03d}-0001-1.0.jpg", patient)
    return folder


def where(house: House, *more: str) -> list[str]:
    return ["--store", str(house.store), "--registry", house.registry, *more]


def own_and_others(house: House, key: bytes, site: str) -> tuple[list[dict], list[dict]]:
    """Decisions on patient 1, by number and by file, and on somebody else, as an endpoint with this key logs them."""
    data = DataVersion.read(next((house.store / "versions").iterdir()))
    files = data.scans.set_index("patient")["sha256"]
    own, others = (
        [
            decision(patient=pseudonyms.of_text(key, site, str(patient))),
            decision(image=pseudonyms.of_file(key, files[patient])),
        ]
        for patient in (1, 2)
    )
    return own, others


@pytest.mark.parametrize("whose", ["registry", "store", "environment"])
@pytest.mark.parametrize("named", [False, True], ids=["no site", "site"])
def test_a_patient_is_erased_from_the_log_and_its_archive(house, tmp_path, monkeypatch, capsys, whose, named):
    if whose == "environment":
        monkeypatch.setenv(pseudonyms.KEY_VARIABLE, "a secret for tests only")
    key = pseudonyms.key(house.store if whose == "store" else house.registry)
    site = Version(next((house.store / "versions").iterdir())).facts.cohort if named else ""
    own, others = own_and_others(house, key, site)
    folder, archive = str(tmp_path / "log"), str(tmp_path / "archive")
    write(tmp_path / "log", [*own, *others])
    log.ship(folder, archive)
    given = where(house, "--forget", "1", "--log", folder, "--archive", archive)
    assert command.main(given) == 0
    listed = capsys.readouterr().out
    assert listed.count("decisions on the patient: 2") == 2
    assert "Nothing was removed" in listed
    assert len(log.read(folder).decisions) == 4
    assert command.main([*given, "--delete"]) == 0
    assert "The store and the archive of the log and the decision log no longer contain" in capsys.readouterr().out
    kept = sorted(row["id"] for row in others)
    assert sorted(log.read(folder).decisions["id"]) == sorted(log.read(archive=archive).decisions["id"]) == kept
    # what the endpoint had not written yet is found by the hashes that the erasure left, if the key is still the same
    write(tmp_path / "log", own[:1] if whose == "registry" else own)
    assert command.main([*given, "--delete"]) == 0
    assert sorted(log.read(folder).decisions["id"]) == kept


def test_a_log_that_is_not_searched_is_named(house, capsys):
    assert command.main(where(house, "--forget", "1", "--delete")) == 0
    told = capsys.readouterr().out
    assert "The store no longer contains any data of the patient." in told
    assert "the decision log, the labelled folder, what was sent to --log-url" in told


def test_days_go_by_age(house, tmp_path, capsys):
    write(tmp_path / "log", [decision()])
    given = where(house, "--log", str(tmp_path / "log"), "--archive", str(tmp_path / "archive"))
    log.ship(tmp_path / "log", tmp_path / "archive")
    assert command.main([*given, "--delete"]) == 0
    assert "kept for ever" in capsys.readouterr().out
    assert command.main([*given, "--log-days", "30"]) == 0
    assert capsys.readouterr().out.count("older than 30 days") == 2
    assert len(log.read(tmp_path / "log", tmp_path / "archive").decisions) == 1
    assert command.main([*given, "--log-days", "30", "--delete"]) == 0
    assert len(log.read(tmp_path / "log", tmp_path / "archive").decisions) == 0


@pytest.mark.parametrize("wrong", [("--log-days", "-1"), ("--log", "no/such")])
def test_bad_options_remove_nothing(house, tmp_path, monkeypatch, capsys, wrong):
    monkeypatch.chdir(tmp_path)
    before = house.files()
    assert command.main(where(house, *wrong, "--delete")) == 2
    assert f"{wrong[0]} {wrong[1]}" in capsys.readouterr().err
    assert house.files() == before
