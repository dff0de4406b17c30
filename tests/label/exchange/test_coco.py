"""COCO: what is written is read again, what other programs write is read, and what is wrong is named."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thyroid.data import classes
from thyroid.data.classes import BINARY
from thyroid.errors import InputError
from thyroid.label.exchange import coco
from thyroid.label.exchange.imported import Imported
from thyroid.label.frames import Frame, frame_id
from thyroid.label.readings import FEATURES, MarkedRegion, Origin, Reading, Verdict

PATHS = ("a/B_001-0001-1.0.jpg", "a/M_002-0001-1.0.jpg", "b/M_002-0002-1.0.jpg", "scan.dcm#2")


def frame(path: str) -> Frame:
    return Frame(path, frame_id(path), 100, 80, None, "", path)


FRAMES = [frame(path) for path in PATHS]


def write(folder, **fields):
    given = {
        "images": [{"id": 1, "file_name": PATHS[0], "width": 100, "height": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]}],
        "categories": [{"id": 1, "name": "nodule"}],
    }
    path = folder / "coco.json"
    path.write_text(json.dumps(given | fields))
    return path


boxes = st.tuples(st.integers(0, 99), st.integers(0, 79), st.integers(1, 100), st.integers(1, 80)).map(
    lambda box: (box[0], box[1], min(box[2], 100 - box[0]), min(box[3], 80 - box[1]))
)
values = {name: list(words) for name, words in FEATURES.items()} | {"foci": [*FEATURES["foci"], "macro+rim+punctate"]}
features = st.fixed_dictionaries({}, optional={name: st.sampled_from(values[name]) for name in FEATURES})


@st.composite
def readings(draw):
    side = draw(st.sampled_from(["", "B", "M"]))
    verdict = draw(st.sampled_from(Verdict))
    given = draw(st.lists(boxes, min_size=1, max_size=4, unique=True)) if verdict is Verdict.NODULES else []
    regions = tuple(
        MarkedRegion(x=x, y=y, width=width, height=height, origin=Origin.IMPORTED, features=draw(features))
        for x, y, width, height in given
    )
    return Reading(verdict=verdict, regions=regions, side=side)


@given(st.dictionaries(st.sampled_from(PATHS), readings()))
def test_what_is_written_is_read_again(tmp_path_factory, given):
    path = tmp_path_factory.mktemp("coco") / "coco.json"
    content = coco.content(given, FRAMES)
    path.write_text(json.dumps(content))
    found = coco.read(path, FRAMES, BINARY)
    assert found.readings == given
    assert (found.problems, found.notes) == ([], [])
    assert len({one["id"] for one in content["annotations"]}) == sum(len(one.regions) for one in given.values())
    assert "esearch use only" in content["info"]["description"]


def test_a_file_of_another_program(tmp_path):
    """Fractions, names without folders, further attributes and fields, and images that nobody looked at."""
    path = write(
        tmp_path,
        licenses=[],
        images=[{"id": 7, "file_name": ".\\M_002-0002-1.0.jpg", "license": 0}, {"id": 8, "file_name": PATHS[0]}],
        annotations=[
            {
                "id": 3,
                "image_id": 7,
                "category_id": 2,
                "bbox": [10.4, 20.6, 89.9, 40],
                "attributes": {"occluded": False, "shape": "taller", "margin": "", "side": "m"},
                "segmentation": [[1, 2]],
                "area": 3,
            }
        ],
        categories=[{"id": 2, "name": "Thyroid lesion"}],
    )
    found = coco.read(path, FRAMES, BINARY, ["thyroid lesion"])
    reading = found.readings[PATHS[2]]
    assert (reading.side, reading.regions[0].box, reading.regions[0].features) == (
        "M",
        (10, 20, 90, 41),
        {"shape": "taller"},
    )
    assert reading.regions[0].origin is Origin.IMPORTED
    assert list(found.readings) == [PATHS[2]]
    assert len(found.notes) == 1
    assert found.problems == []


IMAGE, MARK = {"id": 1, "file_name": PATHS[0]}, {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"categories": [{"id": 1, "name": "artery"}]}, "'artery'"),
        ({"categories": []}, "category_id 1"),
        ({"annotations": [MARK | {"image_id": 5}]}, "image_id 5"),
        ({"images": [IMAGE | {"file_name": "gone.jpg"}]}, r"gone\.jpg.*no such frame"),
        ({"images": [IMAGE | {"width": 101}]}, "width 101"),
        ({"images": [IMAGE, {"id": 2, "file_name": "B_001-0001-1.0.jpg"}], "annotations": []}, None),
        ({"annotations": [MARK | {"bbox": [-3, 0, 30, 30]}]}, "annotation 1.*outside"),
        ({"annotations": [MARK | {"bbox": [80, 0, 30, 30]}]}, "annotation 1.*outside"),
        ({"annotations": [MARK | {"bbox": [0, 0, 1e300, 1]}]}, "annotation 1.*outside"),
        ({"annotations": [MARK | {"bbox": [10, 10, 0, 5]}]}, "annotation 1.*no area"),
        ({"annotations": [MARK | {"bbox": [10, 10, -5, 5]}]}, "annotation 1.*no area"),
        ({"annotations": [MARK | {"bbox": [100.5, 10, 0.5, 5]}]}, "annotation 1.*no area"),
        ({"annotations": [MARK | {"attributes": {"shape": "round"}}]}, "annotation 1: shape 'round'"),
        ({"annotations": [MARK | {"attributes": {"side": "X"}}]}, "side 'X'"),
        ({"annotations": [MARK | {"attributes": {"side": "B"}}], "images": [IMAGE | {"side": "M"}]}, "B and M"),
        ({"images": [IMAGE | {"verdict": "none"}]}, "verdict none"),
        ({"images": [IMAGE | {"verdict": "maybe"}]}, "verdict 'maybe'"),
        ({"images": [IMAGE | {"verdict": "nodules"}], "annotations": []}, "verdict nodules"),
        ({"annotations": [MARK | {"id": n, "bbox": [n, 0, 9, 9]} for n in range(30)]}, "regions"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, fields, named):
    found = coco.read(write(tmp_path, **fields), FRAMES, BINARY)
    if named is None:  # nothing to say of either name
        assert found.problems == []
        return
    assert found.readings == {}
    (problem,) = found.problems
    with pytest.raises(InputError, match=rf"coco\.json: .*{named}.*--skip"):
        found.require_all("coco.json")
    assert "\n" not in problem


def test_the_same_frame_by_two_names(tmp_path):
    images = [IMAGE, {"id": 2, "file_name": "B_001-0001-1.0.jpg"}]
    found = coco.read(
        write(tmp_path, images=images, annotations=[MARK, MARK | {"id": 2, "image_id": 2}]), FRAMES, BINARY
    )
    assert len(found.readings) == len(found.problems) == 1


def test_a_name_of_two_frames(tmp_path):
    found = coco.read(write(tmp_path), [frame("x/scan.jpg"), frame("y/scan.jpg")], BINARY)
    assert "no such frame" in found.problems[0]
    image = {"id": 1, "file_name": "scan.jpg"}
    found = coco.read(write(tmp_path, images=[image]), [frame("x/scan.jpg"), frame("y/scan.jpg")], BINARY)
    assert "several" in found.problems[0]


def test_a_box_twice_counts_once_and_rounding_is_cut(tmp_path):
    marks = [
        MARK | {"attributes": {"shape": "taller"}},
        MARK | {"id": 2},
        MARK | {"id": 3, "bbox": [-0.4, 50, 100.9, 30.5]},
    ]
    found = coco.read(write(tmp_path, annotations=marks), FRAMES, BINARY)
    regions = found.readings[PATHS[0]].regions
    assert [(region.box, region.features) for region in regions] == [
        ((10, 20, 30, 40), {"shape": "taller"}),
        ((0, 50, 100, 30), {}),
    ]


def test_grades_are_sides(tmp_path):
    path = write(tmp_path, images=[IMAGE | {"side": "4A"}])
    grades = classes.parse("2<3|4a<4b")
    assert coco.read(path, FRAMES, grades).readings[PATHS[0]].side == "4a"


@pytest.mark.parametrize(
    "fields",
    [
        {"images": [IMAGE, IMAGE]},
        {"images": [IMAGE, IMAGE | {"id": 2}]},
        {"annotations": [MARK, MARK | {"bbox": [1, 2, 3, 4]}]},
        {"categories": [{"id": 1, "name": "nodule"}, {"id": 1, "name": "artery"}]},
        {"images": {}},
        {"images": None},
        {"annotations": [MARK | {"bbox": [1, 2, 3]}]},
        {"annotations": [MARK | {"bbox": [1, 2, 3, float("nan")]}]},
        {"annotations": [MARK | {"bbox": [1, 2, 3, float("inf")]}]},
        {"annotations": [MARK | {"bbox": [1, 2, 3, 10**400]}]},
        {"annotations": [MARK | {"id": 10**30}]},
        {"annotations": [MARK | {"attributes": [1]}]},
        {"images": [{"id": 1}]},
    ],
)
def test_what_is_no_coco_file_is_refused(tmp_path, fields):
    path = write(tmp_path, **fields)
    with pytest.raises(InputError, match=r"coco\.json: (?!.*\n)"):
        coco.read(path, FRAMES, BINARY)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"images": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_json_is_refused(tmp_path, data):
    path = tmp_path / "coco.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"coco\.json"):
        coco.read(path, FRAMES, BINARY)


def test_a_file_that_is_missing_or_too_large(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such file"):
        coco.read(tmp_path / "coco.json", FRAMES, BINARY)
    monkeypatch.setattr(coco, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="larger"):
        coco.read(write(tmp_path), FRAMES, BINARY)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "name", "x"]), inner),
    max_leaves=5,
)
rows = {
    "images": {"id": st.integers(0, 2), "file_name": st.sampled_from([*PATHS, "gone"]), "width": anything},
    "annotations": {
        "id": st.integers(),
        "image_id": st.integers(0, 2),
        "category_id": st.integers(0, 2),
        "bbox": st.lists(st.floats() | st.integers(-10, 110), min_size=4, max_size=4),
        "attributes": st.dictionaries(st.sampled_from([*FEATURES, "side"]), anything),
    },
    "categories": {"id": st.integers(0, 2), "name": st.sampled_from(["nodule", "artery"])},
}


@given(
    st.fixed_dictionaries(
        {kind: anything | st.lists(st.fixed_dictionaries(row), max_size=3) for kind, row in rows.items()}
    )
)
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("coco") / "coco.json"
    path.write_text(json.dumps(content))
    found = Imported()
    with contextlib.suppress(InputError):
        found = coco.read(path, FRAMES, BINARY)
    for name, reading in found.readings.items():
        (shown,) = [one for one in FRAMES if one.path == name]
        for x, y, width, height in (region.box for region in reading.regions):
            assert x + width <= shown.width
            assert y + height <= shown.height
