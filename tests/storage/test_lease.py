"""A lock in a bucket."""

import threading
import time

import pytest

from tests.support.clouds import Cloud
from thyroid import storage
from thyroid.errors import InputError
from thyroid.storage import lease
from thyroid.storage.bucket import Bucket

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # see test_storage.py


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("EXPIRY", 1.0), ("RENEWAL", 0.2), ("POLL", 0.02)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def there(bucket: Cloud) -> Bucket:
    found = storage.at(bucket.address("store"))
    assert isinstance(found, Bucket)
    return found


def test_one_after_the_other(there: Bucket):
    inside, most, told = 0, 0, []
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with lease.held(there, "lease", lambda: told.append("waiting")):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.1)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert 0 < len(told) <= 3


def test_a_holder_at_work_is_waited_for_longer_than_the_lock_lives(there: Bucket):
    entered = threading.Event()

    def other() -> None:
        with lease.held(there, "lease"):
            entered.set()

    with lease.held(there, "lease") as mine:
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(2.5)
        mine.require_held()
    thread.join()
    assert entered.is_set()


def test_a_holder_that_vanished_is_followed(there: Bucket, monkeypatch):
    with lease.held(there, "lease"):
        left = there.read("lease")[0]
    assert left
    there.write("lease", left)  # as a killed process leaves it
    started = time.monotonic()
    with lease.held(there, "lease") as mine:
        mine.require_held()
    assert time.monotonic() - started >= 1


def test_a_holder_that_was_overtaken_knows_it(there: Bucket):
    with lease.held(there, "lease") as mine:
        there.write("lease", b"another")
        time.sleep(0.6)
        with pytest.raises(InputError, match="lost the lock"):
            mine.require_held()
    assert there.read("lease")[0] == b"another"  # and leaves the other's lock alone


def test_a_holder_that_cannot_renew_knows_it(there: Bucket, bucket: Cloud, monkeypatch):
    monkeypatch.setattr(storage.client, "PATIENCE", 0.1)
    with lease.held(there, "lease") as mine:
        bucket.proxy.rule = lambda method, path: "503"
        time.sleep(1.2)
        with pytest.raises(InputError, match="lost the lock"):
            mine.require_held()
        bucket.proxy.rule = lambda method, path: None
