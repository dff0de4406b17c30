"""Keys and the pseudonyms that they make."""

import pytest

from thyroid import storage
from thyroid.data import pseudonyms
from thyroid.errors import InputError


@pytest.fixture(autouse=True)
def without_a_secret(monkeypatch):
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)


def test_a_registry_makes_its_key_once(place):
    made = pseudonyms.key(place)
    assert len(made) == 64
    assert pseudonyms.key(place) == made
    assert pseudonyms.key(storage.below(place, "other")) != made


def test_the_secret_of_the_environment_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, "a secret for tests only")
    assert pseudonyms.key(tmp_path) == b"a secret for tests only"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["short", "fifteen charact"])
def test_a_secret_that_can_be_guessed_is_refused(tmp_path, monkeypatch, given):
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, given)
    with pytest.raises(InputError, match=rf"THYROID_PATIENT_KEY: .*\b{len(given)}\b.*\b16\b"):
        pseudonyms.key(tmp_path)


def test_a_damaged_key_is_said(tmp_path):
    pseudonyms.key(tmp_path)
    (tmp_path / pseudonyms.KEY_FILE).write_bytes(b"")
    with pytest.raises(InputError, match=r"patient\.key"):
        pseudonyms.key(tmp_path)


def test_pseudonyms_differ_by_key_cohort_and_patient():
    secret = b"a secret for tests only"
    one = pseudonyms.of_patient(secret, "north", 1)
    assert one == pseudonyms.of_patient(secret, "north", 1)
    others = [pseudonyms.of_patient(secret, "south", 1), pseudonyms.of_patient(secret, "north", 2)]
    others.append(pseudonyms.of_patient(b"another secret for tests", "north", 1))
    assert len({one, *others}) == 4
    name, digits = one.split(":")
    assert name == pseudonyms.key_name(secret)
    assert len(digits) == 32
