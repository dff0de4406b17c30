"""Which images are made of a scan, and their names."""

import pandas as pd

from thyroid.data import crops, tables
from thyroid.data.crops import Cut
from thyroid.imaging import geometry

BOX = (100, 60, 90, 70)


def scans(**changes) -> pd.DataFrame:
    """A frame of each split, and a file of the train split that came in cropped."""
    rows = [
        {"path": f"/a/{split}.jpg", "local_path": f"/a/{split}.jpg", "split": split, "domain": "normal"}
        for split in tables.SPLITS
    ]
    rows.append({"path": "/c/crop.jpg", "local_path": "/c/crop.jpg", "split": "train", "domain": "cropped"})
    for number, row in enumerate(rows):
        row |= {"sha256": f"{number}" * 64, "width": 400, "height": 300, "quarantine_reason": None} | changes
    return tables.frame(rows, tables.SCANS)


def regions(table: pd.DataFrame) -> pd.DataFrame:
    x, y, width, height = BOX
    rows = [{"path": path, "index": 0, "x": x, "y": y, "width": width, "height": height} for path in table["path"]]
    return tables.frame(rows, tables.REGIONS)


def test_only_frames_to_learn_from_have_a_disturbed_crop():
    train, *others = crops.plan(scans(), regions(scans()), Cut(0.5, 1.0))
    box = geometry.disturbed(BOX, 400, 300, 1.0, f"{'0' * 64} {BOX}")
    assert train.jittered == {BOX: box}
    assert box != BOX
    assert list(train.keys) == [None, BOX, box]
    assert train.main == train.keys[None]
    assert [plan.jittered for plan in others] == [{}, {}, {}]
    assert [len(plan.keys) for plan in others] == [2, 2, 1]


def test_names_of_the_other_crops_do_not_depend_on_jitter():
    plain, jittered = (crops.plan(scans(), regions(scans()), Cut(0.5, jitter))[0] for jitter in (0.0, 1.0))
    assert plain.jittered == {}
    assert plain.keys.items() < jittered.keys.items()
    assert crops.plan(scans(), regions(scans()), Cut(0.5, 1.0))[0] == jittered
    other = crops.plan(scans(sha256="7" * 64), regions(scans()), Cut(0.5, 1.0))[0]
    assert other.jittered != jittered.jittered


def test_files_are_those_of_every_way_in_which_regions_were_cut():
    table, boxes = scans(), regions(scans())
    some, more = (crops.files(table, boxes, [Cut(0.5, jitter)]) for jitter in (0.0, 1.0))
    assert len(some) == 7
    assert len(more - some) == 1
    wide = crops.files(table, boxes, [Cut(0.3, 0.0)])
    assert crops.files(table, boxes, [Cut(0.5, 1.0), Cut(0.3, 0.0)]) == more | wide
    assert crops.files(table, boxes, []) == set()


def test_a_table_of_an_older_release_has_no_jitter():
    assert crops.cuts_in(pd.DataFrame({"margin": [0.15, 0.15]})) == {Cut(0.15, 0.0)}
    mixed = pd.DataFrame({"margin": [0.15, 0.5, 0.5], "jitter": [None, 1.0, 1.0]})
    assert crops.cuts_in(mixed) == {Cut(0.15, 0.0), Cut(0.5, 1.0)}
