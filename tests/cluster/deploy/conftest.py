"""One namespace for all of these tests, with endpoints that go on from one test to the next."""

from collections.abc import Iterator

import pytest

from tests.support.deploying import Place
from tests.support.kubernetes import ApiServer


@pytest.fixture(scope="session")
def kept_place(server: ApiServer, no_kserve: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Place(server, tmp_path_factory.mktemp("volume")) as one:
        yield one


@pytest.fixture
def place(kept_place: Place) -> Iterator[Place]:
    """A namespace without an InferenceService of ours, and a registry whose champion is version 1."""
    kept_place.reset()
    yield kept_place
    kept_place.clear()


@pytest.fixture
def served(place: Place) -> Place:
    """Version 1 serves, and version 2 has just become the champion."""
    place.deploy()
    place.release(2)
    return place
