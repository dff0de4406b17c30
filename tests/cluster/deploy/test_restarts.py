"""The API server is killed and started again in each phase of a deployment, which ends as without that."""

import gc
import threading
from collections import Counter

import pytest

from tests.support.deploying import WRONG, Place, owners

# The clients in this process leave sockets to the garbage collector when the server dies in the middle of an answer.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

DELAYS = (0.0, 0.003, 0.02, 0.1)
"""Seconds between the start of a call and the death of the server."""
WRITES = "PATCH inferenceservices/thyroid"
"""Repeated once more where the server dies after it has written: the next try then meets a newer resourceVersion."""


def _disturbed(place: Place, version: int, *options: str, code: int = 0) -> Counter[str]:
    """Restart the server at one call after the other, before it and while it is answered by turns.

    KServe does nothing until there were seven restarts. From then on only the writes, and what comes after the proof,
    are disturbed.

    Returns:
        The number of restarts at each kind of call.
    """
    done: Counter[str] = Counter()
    deployment = place.stepping("--timeout", "600", *options)
    place.controller.paused, answered, previous, timer = True, False, "", threading.Timer(0, lambda: None)
    timer.start()
    for step in deployment.steps():
        moment, _, call = step.partition(" ")
        is_next = moment == "before" and previous and (answered or call != previous)  # and not repeated
        answered, previous = moment == "after", call
        if is_next and (place.controller.paused or call == WRITES or "proven" in place.history(version)):
            timer.join()
            if done.total() % 2:
                place.server.restart()
            else:
                timer = threading.Timer(DELAYS[done.total() // 2 % len(DELAYS)], place.server.restart)
                timer.start()
            done[call] += 1
        place.controller.paused &= done.total() < 7
    timer.join()
    place.server.wait()
    deployment.end(code)
    gc.collect()
    return done


def test_a_fresh_deployment(own_server, place):
    restarts = _disturbed(place, 1)
    assert restarts.total() >= 7
    assert restarts[WRITES] >= 1
    assert place.live()["spec"]["predictor"]["model"]["storageUri"] == place.uri(1)
    assert owners(place.live()) == {"thyroid": ["Apply"]}
    assert place.history(1) == ["sent", "proven"]


def test_an_update(own_server, place):
    place.deploy()
    place.release(2)
    restarts = _disturbed(place, 2)
    assert restarts.total() >= 7
    assert place.live()["spec"]["predictor"]["model"]["storageUri"] == place.uri(2)
    assert owners(place.live()) == {"thyroid": ["Apply"]}
    assert place.history(2) == ["sent", "proven"]
    place.until_shares({2: 3})


def test_a_canary(own_server, place):
    place.deploy()
    place.release(2)
    restarts = _disturbed(place, 2, "--canary", "25")
    assert restarts.total() >= 9
    assert restarts[WRITES] >= 2
    (canary,) = place.live()["spec"]["canary"]
    assert (canary["trafficPercent"], canary["predictor"]["model"]["storageUri"]) == (25, place.uri(2))
    assert place.live()["spec"]["predictor"]["model"]["storageUri"] == place.uri(1)
    assert owners(place.live()) == {"thyroid": ["Apply"]}
    assert place.history(2) == ["sent", "proven"]
    place.until_shares({1: 6, 2: 2})


def test_a_version_that_is_taken_back(own_server, place):
    place.deploy()
    before = place.live()["spec"]
    place.release(WRONG)
    restarts = _disturbed(place, WRONG, code=2)
    assert restarts.total() >= 8
    assert restarts[WRITES] >= 2
    assert place.live()["spec"] == before
    assert owners(place.live()) == {"thyroid": ["Apply"]}
    assert (place.registry.champion(), place.history(WRONG)) == (1, ["sent"])
    place.until_shares({1: 3})


def test_before_the_first_answer_nothing_is_decided(own_server, place):
    before, running = place.state(), place.stepping()
    for step in running.steps():
        if step.startswith("before GET servingruntimes"):
            own_server.restart()
    own_server.wait()
    assert "no decision was made: run the deployment again" in running.end(2)
    assert place.state() == before
