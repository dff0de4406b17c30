"""What requests say: each form that senders use, and everything that is none of them."""

import json

import pytest

from pipelines.events import messages
from pipelines.events.batch import Arrival
from tests.support.listening import records, structured, written
from thyroid.serve.limits import RequestError

NAME = "scans/B_001-0002-1.0.jpg"
EVENT = written("hospital", NAME, 7)
WANTED = Arrival(f"gs://hospital/{NAME}", "7")
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}
BATCH = {"content-type": "application/cloudevents-batch+json"}


def as_json(content) -> bytes:
    return json.dumps(content).encode()


def test_a_cloudevent_in_each_mode():
    assert messages.read(*EVENT) == ([WANTED], 0)
    assert messages.read(STRUCTURED, as_json(structured(EVENT))) == ([WANTED], 0)
    assert messages.read(BATCH, as_json([structured(EVENT)] * 2)) == ([WANTED, WANTED], 0)


@pytest.mark.parametrize("kind", ["deleted", "archived", "metadataUpdated"])
def test_other_events_of_the_bucket_do_not_count(kind):
    headers = EVENT[0] | {"ce-type": f"google.cloud.storage.object.v1.{kind}"}
    assert messages.read(headers, EVENT[1]) == ([], 1)


def test_events_of_others_are_left_alone_whatever_their_data():
    headers = EVENT[0] | {"ce-type": "thyroid.decision.v1", "content-type": "text/plain"}
    assert messages.read(headers, b"\xff\xfe") == ([], 1)


def test_notifications_of_s3():
    body = records("hospital", ["scans/a+b/B_1-1-1.0.jpg", "scans/%C3%A9/B_1-1-1.0.jpg"])
    found = [
        Arrival("s3://hospital/scans/a b/B_1-1-1.0.jpg", "abc"),
        Arrival("s3://hospital/scans/é/B_1-1-1.0.jpg", "abc"),
    ]
    assert messages.read({}, body) == (found, 0)
    assert messages.read({}, records("hospital", ["x"], "s3:ObjectRemoved:Delete")) == ([], 1)
    assert messages.read({}, body.replace(b"s3:ObjectCreated:Put", b"ObjectCreated:Copy"))[0] == found


def test_a_plain_list():
    assert messages.read({}, as_json({"objects": [WANTED.address]})) == ([Arrival(WANTED.address)], 0)


DEEP = b'{"objects": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD = {
    "empty": ({}, b""),
    "no JSON": ({}, b"<html>"),
    "not UTF-8": ({}, b'{"objects": ["\xff"]}'),
    "nested": ({}, DEEP),
    "nested event": (STRUCTURED, DEEP),
    "a list": ({}, b"[1]"),
    "a number": ({}, b"7"),
    "other fields": ({}, b'{"files": []}'),
    "objects of another type": ({}, b'{"objects": "gs://b/a"}'),
    "numbers as objects": ({}, b'{"objects": [1]}'),
    "records of another type": ({}, b'{"Records": {}}'),
    "records without a place": ({}, b'{"Records": [{"eventName": "ObjectCreated:Put"}]}'),
    "records of numbers": ({}, b'{"Records": [1]}'),
    "an event without type": (STRUCTURED, b'{"specversion": "1.0", "id": "1", "source": "a"}'),
    "an event of another version": (STRUCTURED, b'{"specversion": "7", "id": "1", "source": "a", "type": "b"}'),
    "an event that is a list": (STRUCTURED, b"[]"),
    "an event that is a text": (BATCH, b'["a"]'),
    "a batch that is none": (BATCH, b"{}"),
    "an event without data": (EVENT[0], b""),
    "data that are a list": (EVENT[0], b"[]"),
    "data without a name": (EVENT[0], b'{"bucket": "b"}'),
    "data of another type": (EVENT[0], b'{"bucket": 1, "name": {}}'),
    "data that are nested": (EVENT[0], b"[" * 100_000),
    "an unknown version in the headers": (EVENT[0] | {"ce-specversion": "x"}, EVENT[1]),
    "too many objects": ({}, as_json({"objects": ["a"] * 100_000})),
    "too many events": (BATCH, as_json([{}] * 100_000)),
    "too many records": ({}, as_json({"Records": [{}] * 100_000})),
    "bytes that are no base64": (STRUCTURED, as_json({**structured(EVENT), "data": None, "data_base64": "%%"})),
}


@pytest.mark.parametrize("what", BAD)
def test_whatever_else_comes_is_refused_in_one_line_that_quotes_nothing(what):
    with pytest.raises(RequestError) as refused:
        messages.read(*BAD[what])
    assert refused.value.status in (400, 413)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200
    assert "B_001" not in str(refused.value)
