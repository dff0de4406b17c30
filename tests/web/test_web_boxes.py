"""The boxes that a model proposes: what the page asks for, and what a result says about the box it is for."""

import html
import io
import re
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient
from PIL import Image

from tests.support.locating import FACTS, PLACES, Locating
from thyroid.web import app, channel, endpoint, words
from thyroid.web.words import Words

EN = Words("en")
WIDTH, HEIGHT = 200, 100
BEST = [int(side * size) for side, size in zip(PLACES[0][:4], (WIDTH, HEIGHT) * 2, strict=True)]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), 90).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def locating() -> Iterator[Locating]:
    running = Locating()
    yield running
    running.stop()


class Visitor:
    """A session before the page, in this process."""

    def __init__(self, address: str) -> None:
        self.client: FlaskClient = app.create(app.Options(address)).test_client()
        self.home = self.client.get("/").text
        (self.token,) = re.findall(r'name="csrf_token" value="([^"]+)"', self.home)

    def locate(self, **form: str):
        return self.client.post("/locate", data={"csrf_token": self.token, "file": (io.BytesIO(png()), "a.png")} | form)

    def read(self, *marks: tuple[str, str, str]):
        """Read as many pictures as there are marks, each of box, origin and domain."""
        form = {"csrf_token": self.token, "files": [(io.BytesIO(png()), f"{i}.png") for i, _ in enumerate(marks)]}
        if any(map(any, marks)):
            form |= dict(zip(("roi", "origin", "domain"), map(list, zip(*marks, strict=True)), strict=True))
        return self.client.post("/read", data=form)


@pytest.fixture
def visitor(locating) -> Visitor:
    return Visitor(locating.address)


NONE = ("", "", "")


def said(text: str) -> str:
    plain = re.sub(r"<(style|script)[^>]*>.*?</\1>", " ", text, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", plain))


def rectangles(text: str, kind: str) -> list[list[int]]:
    found = re.findall(rf'<rect class="{kind}" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', text)
    return [[int(side) for side in one] for one in found]


def test_proposals_are_passed_on_best_first(visitor, locating):
    answer = visitor.locate()
    assert answer.status_code == 200
    assert answer.json["source"] == "auto"
    assert answer.json["unsure"] is False
    assert [one["share"] for one in answer.json["proposals"]] == [words.share(place[4]) for place in PLACES]
    assert answer.json["proposals"][0]["box"] == BEST
    ((path, body),) = locating.asked
    assert path.endswith(":locate")
    assert set(body["instances"][0]) == {"image"}


def test_an_unsure_box_is_passed_on_as_unsure(visitor, locating):
    locating.unsure = True
    assert visitor.locate().json["unsure"] is True


def test_a_picture_that_is_taken_for_a_crop_has_no_proposals_until_it_is_said_to_be_a_frame(visitor, locating):
    locating.whole = True
    assert visitor.locate().json == {"source": "whole", "unsure": False, "proposals": []}
    answer = visitor.locate(domain="frame")
    assert answer.json["source"] == "auto"
    assert locating.asked[-1][1]["instances"][0]["domain"] == "frame"


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_model_without_a_locator_proposes_nothing(visitor, locating, status):
    locating.located = status
    answer = visitor.locate()
    assert answer.status_code == 200
    assert answer.json == {"source": "none", "unsure": False, "proposals": []}


@pytest.mark.parametrize(("status", "shown"), [(503, 503), (429, 502), (500, 502)])
def test_an_endpoint_that_cannot_propose_now_is_an_error(visitor, locating, status, shown):
    locating.located = status
    answer = visitor.locate()
    assert answer.status_code == shown
    assert answer.json["error"]


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "auto", "proposals": []},
        {"box": [0, 0, 10, 10]},
        {"box": [BEST[0], BEST[1], 500, 10], "proposals": [{"box": [BEST[0], BEST[1], 500, 10], "probability": 0.5}]},
        {"box": [-1, 0, 9, 9], "proposals": [{"box": [-1, 0, 9, 9], "probability": 0.5}]},
        {"box": [1, 1, 0, 9], "proposals": [{"box": [1, 1, 0, 9], "probability": 0.5}]},
        {"box": [True, 1, 9, 9], "proposals": [{"box": [True, 1, 9, 9], "probability": 0.5}]},
        {"box": "<b>", "proposals": [{"box": "<b>", "probability": 0.5}]},
        {"proposals": [{"box": BEST, "probability": float("nan")}]},
        {"proposals": [{"box": BEST, "probability": 7}]},
        {"proposals": None},
    ],
    ids=str,
)
def test_proposals_of_another_form_are_not_shown(visitor, locating, changes):
    locating.changes = changes
    assert visitor.locate().status_code == 502


def test_proposals_do_not_keep_readings_waiting(locating, monkeypatch):
    monkeypatch.setattr(endpoint, "LOCATINGS", 0)
    visitor = Visitor(locating.address)
    assert visitor.locate().status_code == 503
    assert visitor.read(NONE).status_code == 200


def test_every_route_with_files_may_have_a_large_body(locating):
    routes = app.create(app.Options(locating.address)).url_map.iter_rules()
    assert {rule.rule for rule in routes if "POST" in (rule.methods or ())} == set(channel.UPLOADS)


def test_proposals_are_asked_for_with_a_file_and_a_token(visitor):
    assert visitor.locate(csrf_token="x").status_code == 400
    assert visitor.client.post("/locate", data={"csrf_token": visitor.token}).status_code == 400
    assert visitor.locate(file=(io.BytesIO(b"Dear colleague"), "a.png")).status_code == 400
    assert visitor.client.get("/locate").status_code == 405


@pytest.mark.parametrize(("origin", "key"), [("own", "own"), ("accepted", "accepted"), ("", "own"), ("<b>", "own")])
def test_a_given_box_is_answered_for_and_said_to_be_whose_it_is(visitor, locating, origin, key):
    answer = visitor.read(("10,20,40,30", origin, ""))
    assert answer.status_code == 200
    assert locating.asked[-1][1]["instances"][0]["roi"] == [10, 20, 40, 30]
    assert rectangles(answer.text, "roi") == [[10, 20, 40, 30]]
    told = {one for one in ("own", "accepted", "auto") if EN(f"answered_{one}") in said(answer.text)}
    assert told == {key}


def test_without_a_box_the_automatic_one_is_drawn_and_said_to_be_unconfirmed(visitor, locating):
    answer = visitor.read(("", "accepted", "frame"))
    assert answer.status_code == 200
    sent = locating.asked[-1][1]["instances"][0]
    assert "roi" not in sent
    assert sent["domain"] == "frame"
    assert rectangles(answer.text, "roi auto") == [BEST]
    assert len(rectangles(answer.text, "proposal other")) == len(PLACES) - 1
    text = said(answer.text)
    assert EN("answered_auto") in text
    assert EN("answered_fits", share=words.share(PLACES[0][4])) in text
    assert EN("no_box_taken") not in text


def test_a_form_without_the_script_shows_the_automatic_box(visitor, locating):
    answer = visitor.read(NONE)
    assert answer.status_code == 200
    assert set(locating.asked[-1][1]["instances"][0]) == {"image", "patient"}
    assert rectangles(answer.text, "roi auto") == [BEST]
    assert 'class="scan"' in answer.text
    assert EN("no_script_proposed") in said(visitor.home)


def test_a_picture_that_was_taken_for_a_crop_is_said_to_be(visitor, locating):
    locating.whole = True
    answer = visitor.read(NONE)
    assert EN("no_box_taken") in said(answer.text)
    assert rectangles(answer.text, "roi(?: auto)?") == []


def test_an_unsure_box_is_shown_and_asked_for(visitor, locating):
    locating.unsure = True
    answer = visitor.read(NONE)
    text = said(answer.text)
    assert EN("decision_abstain") in text
    assert EN("reason_box_unsure") in text
    assert EN("answered_unsure") in text
    assert rectangles(answer.text, "roi auto") == [BEST]


def test_views_that_do_not_count_are_named(visitor, locating):
    locating.unsure = True
    answer = visitor.read(("10,20,40,30", "own", ""), NONE)
    text = said(answer.text)
    assert EN("left_out_box_unsure", number=2) in text
    assert EN("left_out_box_unsure", number=1) not in text
    assert EN("views_split", count=1, total=1) in text
    assert EN("decision_malignant") in text


def test_a_patient_without_a_view_that_counts_has_no_decision(visitor, locating):
    locating.released = False
    text = said(visitor.read(NONE, NONE).text)
    for number in (1, 2):
        assert EN("left_out_box_not_confirmed", number=number) in text
    assert EN("reason_box_not_confirmed") in text
    assert EN("views_split", count=2, total=2) not in text


BAND = EN("reason_abstention_band", probability=words.share(0.8), threshold=words.share(0.5))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reasons": ["box_unsure", "abstention_band"], "reason": "box_unsure"}, [EN("reason_box_unsure"), BAND]),
        ({"reasons": ["views_disagree"]}, [EN("reason_views_disagree")]),
        ({"reasons": ["something_newer"]}, [EN("reason_other")]),
        ({"reasons": []}, [EN("reason_other")]),
        ({"reasons": [["odd"]]}, [EN("reason_other")]),
        ({"reason": "abstention_band"}, [BAND]),
        ({}, [BAND]),
    ],
    ids=str,
)
def test_every_reason_of_an_abstention_is_said(visitor, locating, changes, told):
    """Answers of earlier releases have one reason or none."""
    locating.changes = {"decision": "abstain"} | changes
    text = said(visitor.read(("10,20,40,30", "own", ""), ("10,20,40,30", "own", "")).text)
    every = [BAND, *(EN(f"reason_{one}") for one in ("box_unsure", "box_not_confirmed", "views_disagree", "other"))]
    assert [one for one in every if one in text] == [one for one in every if one in told]


@pytest.mark.parametrize("image", [1, -1, "0", True, None])
def test_a_view_that_was_not_sent_cannot_be_left_out(visitor, locating, image, monkeypatch):
    honest = Locating.explain

    def explain(self, instances):
        answer = honest(self, instances)
        answer["patients"][0]["left_out"] = [{"image": image, "reason": "box_unsure"}]
        return answer

    monkeypatch.setattr(Locating, "explain", explain)
    assert visitor.read(NONE).status_code == 502


@pytest.mark.parametrize(
    "crop",
    [
        {"source": "auto", "square": [0, 0, 9]},
        {"source": "auto", "square": [0, 0, 9], "box": [0, 0, 9, 9], "probability": 2, "proposals": []},
        {"source": "auto", "square": [0, 0, 9], "box": [0, 0, 900, 9], "probability": 0.5, "proposals": []},
    ],
    ids=str,
)
def test_an_automatic_box_of_another_form_is_not_shown(visitor, locating, crop):
    locating.changes = {"crop": crop}
    assert visitor.read(NONE).status_code == 502


def test_the_answer_of_a_model_of_full_frames_is_not_said_to_be_for_a_box(visitor, locating):
    locating.changes = {"crop": {"source": "given", "domain": "normal", "box": [0, 0, 9, 9], "square": [0, 0, 9]}}
    answer = visitor.read(("10,20,40,30", "own", ""))
    assert rectangles(answer.text, "roi") == [[10, 20, 40, 30]]
    assert EN("answered_own") not in said(answer.text)


@pytest.mark.parametrize("released", [True, False])
def test_the_page_says_how_well_boxes_fit_and_when_they_need_a_person(locating, released):
    locating.released = released
    home = Visitor(locating.address).home
    assert EN("boxes_fit", share="61\N{NO-BREAK SPACE}% (52–69\N{NO-BREAK SPACE}%)") in said(home).replace("  ", " ")
    assert (EN("boxes_confirm") in said(home)) is not released
    assert 'data-locates="yes"' in home


UNLIKE = {"decision": "abstain", "reasons": ["unlike_training"], "reason": "unlike_training", "novelty": 100.0}


@pytest.mark.parametrize("language", words.LANGUAGES)
def test_a_picture_unlike_those_that_the_model_learnt_from_gets_no_decision(visitor, locating, language):
    locating.changes = UNLIKE
    visitor.client.get(f"/?lang={language}")
    texts = words.load(language)
    shown = said(visitor.read(("20,20,50,50", "", "")).text)
    assert texts["reason_unlike_training"] in shown
    assert texts["decision_abstain"] in shown
    assert texts["decision_malignant"] not in shown
    assert texts["typical"].split("{share}")[1] not in shown
    assert shown.count(texts["reason_unlike_training"]) == 1
    several = said(visitor.read(("20,20,50,50", "", ""), ("20,20,50,50", "", "")).text)
    for number in (1, 2):
        assert texts["left_out_unlike_training"].format(number=number) in several


def test_how_typical_a_picture_is_stands_in_its_details(visitor, locating):
    locating.changes = {"novelty": 37.0, "novelty_distance": 0.6}
    shown = said(visitor.read(NONE).text)
    assert EN("typical", share=words.share(0.37)) in shown
    locating.changes = {}
    assert EN("typical", share=words.share(0.37)) not in said(visitor.read(NONE).text)


@pytest.mark.parametrize("novelty", ["37", 137.0, -1.0, None, [1]])
def test_a_novelty_of_another_form_is_not_shown(visitor, locating, novelty):
    locating.changes = {"novelty": novelty}
    answer = visitor.read(NONE)
    assert answer.status_code == 502
    assert EN("error_answer") in said(answer.text)


def test_a_model_that_cannot_tell_says_so(locating, monkeypatch):
    assert EN("novelty_unknown") in said(Visitor(locating.address).home)
    passed = {"value": 0.97, "low": 0.9, "high": 0.99}
    monkeypatch.setattr(locating, "facts", lambda: FACTS | {"novelty": {"passed": passed}})
    home = said(Visitor(locating.address).home)
    assert EN("novelty_unknown") not in home
    assert "97\N{NO-BREAK SPACE}% (90–99\N{NO-BREAK SPACE}%)" in home
