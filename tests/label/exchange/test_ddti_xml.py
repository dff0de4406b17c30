"""DDTI's XML: boxes of contours, grades and descriptors; hostile and damaged files are refused by name."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thyroid.data import classes
from thyroid.data.classes import BINARY
from thyroid.errors import InputError
from thyroid.label.exchange import ddti_xml
from thyroid.label.frames import Frame, frame_id
from thyroid.label.readings import Origin


def frame(path: str) -> Frame:
    return Frame(path, frame_id(path), 560, 360, None, "", path)


FRAMES = [frame(path) for path in ("100_1.jpg", "sub/100_2.JPG", "M_007-0002-1.0.jpg", "other.jpg")]
SQUARE = [(100.5, 50), (180, 60), (140, 120.2)]


def svg(*contours) -> str:
    return json.dumps(
        [
            {"points": [{"x": x, "y": y} for x, y in points], "annotation": {}, "regionType": "freehand"}
            for points in contours
        ]
    )


ONE = ((1, svg(SQUARE)),)


def case(marks=ONE, number="100", tirads="4a", **fields) -> str:
    parts = "".join(f"<{name}>{text}</{name}>" for name, text in fields.items())
    marked = "".join(f"<mark><image>{image}</image><svg>{text}</svg></mark>" for image, text in marks)
    return (
        f'<?xml version="1.0" encoding="utf-8"?><case><number>{number}</number><age>61</age><sex>F</sex>{parts}'
        f"<tirads>{tirads}</tirads><reportbacaf/><reporteco/>{marked}</case>"
    )


def read(folder, text, classes=BINARY, name="100.xml"):
    (folder / name).write_text(text)
    return ddti_xml.read(folder, FRAMES, classes)


def test_contours_become_boxes_and_the_grade_a_side(tmp_path):
    larger = [(10, 10), (210, 200)]
    fields = {
        "composition": "predominantly solid",
        "echogenicity": "marked hypoechogenicity",
        "margins": "ill- defined",
        "calcifications": "microcalcifications",
    }
    found = read(tmp_path, case([(1, svg(SQUARE, larger)), (2, svg(SQUARE)), (3, "")], **fields))
    assert found.problems == []
    assert len(found.notes) == 1
    assert list(found.readings) == ["100_1.jpg", "sub/100_2.JPG"]
    first, second = found.readings.values()
    described = {
        "composition": "mixed",
        "echogenicity": "very_hypoechoic",
        "margin": "ill_defined",
        "foci": "punctate",
    }
    assert [(region.box, region.features) for region in first.regions] == [
        ((100, 50, 80, 71), {}),
        ((10, 10, 200, 190), described),
    ]
    assert second.regions[0].features == described
    assert (first.side, first.regions[0].origin) == ("M", Origin.IMPORTED)


@pytest.mark.parametrize(
    ("tirads", "spec", "side"),
    [
        ("2", "B|M", "B"),
        ("3", "B|M", "B"),
        ("4A", "B|M", "M"),
        ("5", "B|M", "M"),
        ("", "B|M", ""),
        ("4b", "2<3|4a<4b<4c<5", "4b"),
        ("1", "2<3|4a<4b<4c<5", ""),
        ("2", "cyst,adenoma|papillary", ""),
    ],
)
def test_the_side_of_a_grade(tmp_path, tirads, spec, side):
    found = read(tmp_path, case(tirads=tirads), classes.parse(spec))
    assert found.readings["100_1.jpg"].side == side


def test_frames_by_the_names_of_this_project(tmp_path):
    found = read(tmp_path, case([(2, svg(SQUARE))], number="7"))
    assert list(found.readings) == ["M_007-0002-1.0.jpg"]


def test_several_marks_of_an_image_come_together(tmp_path):
    found = read(tmp_path, case([(1, svg(SQUARE)), (1, svg([(1, 1), (20, 20)])), (1, svg(SQUARE))]))
    assert [region.box for region in found.readings["100_1.jpg"].regions] == [(100, 50, 80, 71), (1, 1, 19, 19)]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("spongiform appearance", "spongiform"),
        ("spongiform apperance", "spongiform"),
        ("Solid", "solid"),
        ("predominantly  cystic", "mixed"),
        ("dense", None),
    ],
)
def test_words_of_ddti(tmp_path, word, value):
    found = read(tmp_path, case(composition=word))
    assert found.readings["100_1.jpg"].regions[0].features.get("composition") == value


def test_words_of_no_value_are_noted(tmp_path):
    found = read(tmp_path, case(composition="dense", margins="well-defined"))
    assert found.readings["100_1.jpg"].regions[0].features == {"margin": "smooth"}
    assert "dense" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (case([(9, svg(SQUARE))]), "image 9"),
        (case([(1, svg([(0, 0), (600, 10)]))]), "image 1.*outside"),
        (case([(1, svg([(-9, 0), (60, 10)]))]), "image 1.*outside"),
        (case([(1, svg([(5, 5), (5, 90)]))]), "image 1.*area"),
        (case([(1, svg([(5, 5)]))]), "image 1.*area"),
        (case([("one", svg(SQUARE))]), "<image>"),
        (case([(1, "[{")]), "<svg> of image 1"),
        (case([(1, "{}")]), "<svg> of image 1"),
        (case([(1, '[{"points": [{"x": 1}]}]')]), "points"),
        (case([(1, '[{"points": [{"x": NaN, "y": 1}]}]')]), "points"),
        (case([(1, "[" * 90_000)]), "<svg> of image 1"),
        (case([(1, svg(*[[(n, 1), (n + 9, 9)] for n in range(40)]))]), "regions"),
        (case(number="x"), "<number>"),
        (case(number=""), "<number>"),
        (case(tirads="benign"), "<tirads>"),
        ("<cases/>", "<case>"),
        ("", "not XML"),
        ("no XML", "not XML"),
        ("<case>", "not XML"),
        ('<?xml version="1.0" encoding="klingon"?><case/>', "not XML"),
        ("<case>" + "<a>" * 50 + "</a>" * 50 + "</case>", "nested"),
        ("<case>&unheard;</case>", "not XML"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, text, named):
    found = read(tmp_path, text)
    assert found.readings == {}
    with pytest.raises(InputError, match=rf"^ddti: 100\.xml.*{named}.*--skip"):
        found.require_all("ddti")
    assert "\n" not in found.problems[0]


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize(
    "document_type",
    [
        f'<!DOCTYPE case [<!ENTITY l0 "lol">{LAUGHS}]>',
        '<!DOCTYPE case [<!ENTITY l9 SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE case SYSTEM "http://localhost:1/case.dtd">',
    ],
)
def test_a_document_type_is_refused(tmp_path, document_type):
    text = case(number="&l9;").replace("<case>", f"{document_type}<case>", 1)
    found = read(tmp_path, text)
    assert found.readings == {}
    assert "DOCTYPE" in found.problems[0]


@given(st.binary(max_size=80) | st.text(max_size=40).map(lambda text: case([(1, text)]).encode("utf-8", "replace")))
def test_whatever_a_file_holds_it_is_read_or_refused(data):
    with contextlib.suppress(InputError):
        assert ddti_xml.parse(data, "1.xml").number == 100


def test_a_bad_file_does_not_hide_the_others(tmp_path):
    (tmp_path / "1.xml").write_text("no XML")
    (tmp_path / "2.xml").write_text(case())
    (tmp_path / "3.XML").write_text(case(number="7", marks=[(2, svg(SQUARE))]))
    (tmp_path / "4.xml").write_text(case())
    found = ddti_xml.read(tmp_path, FRAMES, BINARY)
    assert list(found.readings) == ["100_1.jpg", "M_007-0002-1.0.jpg"]
    assert [problem.split(":")[0] for problem in found.problems] == ["1.xml", "4.xml"]
    assert list(ddti_xml.read(tmp_path / "2.xml", FRAMES, BINARY).readings) == ["100_1.jpg"]


def test_two_frames_of_one_image(tmp_path):
    (tmp_path / "7.xml").write_text(case(number="7", marks=[(2, svg(SQUARE))]))
    found = ddti_xml.read(tmp_path, [*FRAMES, frame("B_007-0002-2.0.jpg")], BINARY)
    assert "several" in found.problems[0]
    assert found.readings == {}


def test_folders_and_files_beyond_the_limits(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="XML files"):
        ddti_xml.read(tmp_path, FRAMES, BINARY)
    assert "no such file" in ddti_xml.read(tmp_path / "gone.xml", FRAMES, BINARY).problems[0]
    monkeypatch.setattr(ddti_xml, "MOST_BYTES", 10)
    assert "larger" in read(tmp_path, case()).problems[0]
    monkeypatch.setattr(ddti_xml, "MOST_FILES", 0)
    with pytest.raises(InputError, match="XML files"):
        ddti_xml.read(tmp_path, FRAMES, BINARY)
