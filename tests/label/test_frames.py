"""The frames of a folder or bucket: what is known of each, and files that vanish or are damaged."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_scan
from tests.support import dicoms
from tests.support.labelling import Labelling, nodules
from thyroid.data import classes as class_names
from thyroid.data import pseudonyms
from thyroid.data.classes import BINARY
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest import listing
from thyroid.label import pictures as label_pictures
from thyroid.label.consensus import State
from thyroid.label.frames import Catalogue, GoneError

KEY = "a secret for tests only"


def test_what_file_names_say(tmp_path):
    write_scan(tmp_path / "sub" / "M_002-0001-1.0.jpg", 1, (96, 80))
    write_scan(tmp_path / "B_001-0001-1.0.jpg", 2, (64, 48))
    write_scan(tmp_path / "B_001-0002-1.0.jpg", 3)
    write_scan(tmp_path / "unnamed.jpg", 4)
    catalogue = Catalogue.read(tmp_path, BINARY)
    assert [(f.path, f.width, f.height, f.patient, f.label, f.group) for f in catalogue.frames] == [
        ("B_001-0001-1.0.jpg", 64, 48, 1, "B", "patient-1"),
        ("B_001-0002-1.0.jpg", 96, 80, 1, "B", "patient-1"),
        ("sub/M_002-0001-1.0.jpg", 96, 80, 2, "M", "patient-2"),
        ("unnamed.jpg", 96, 80, None, "", "unnamed.jpg"),
    ]
    for frame in catalogue.frames:
        assert frame.id == hashlib.sha256(frame.path.encode()).hexdigest()[:16]
        assert catalogue.of(frame.id) is catalogue.by_path(frame.path) is frame
        assert catalogue.bytes(frame) == (tmp_path / frame.path).read_bytes()
    assert catalogue.of("0" * 16) is None
    assert catalogue.by_path("B_009-0001-1.0.jpg") is None


def test_what_a_table_of_labels_says(tmp_path):
    write_scan(tmp_path / "B_001-0001-1.0.jpg", 1)
    write_scan(tmp_path / "unnamed.jpg", 2)
    write_scan(tmp_path / "M_003-0001-1.0.jpg", 3)
    table = tmp_path / "labels.csv"
    table.write_text("filename,label,patient\nunnamed.jpg,4a,7\nB_001-0001-1.0.jpg,nonsense,\n")
    catalogue = Catalogue.read(tmp_path, class_names.parse("2<3|4a<4b"), table)
    assert [(f.path, f.patient, f.label, f.group) for f in catalogue.frames] == [
        ("B_001-0001-1.0.jpg", 1, "", "patient-1"),
        ("M_003-0001-1.0.jpg", 3, "", "patient-3"),
        ("unnamed.jpg", 7, "4a", "patient-7"),
    ]
    assert not catalogue.left_out  # the table is no picture


def test_what_ingest_would_quarantine_is_left_out(tmp_path):
    folder = tmp_path / "scans"
    write_scan(folder / "B_001-0001-1.0.jpg", 1)
    (folder / "B_002-0001-1.0.jpg").write_bytes(b"")
    (folder / "B_003-0001-1.0.jpg").write_bytes(b"not a picture")
    Image.new("L", (40, 40)).save(folder / "B_004-0001-1.0.png")
    write_scan(folder / "B_005-0001-1.0.jpg", 5, (8, 8))
    write_scan(tmp_path / "elsewhere.jpg", 6)
    (folder / "B_006-0001-1.0.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (folder / "notes.txt").write_text("not a frame, and nobody expects one")
    catalogue = Catalogue.read(folder, BINARY)
    assert [frame.path for frame in catalogue.frames] == ["B_001-0001-1.0.jpg"]
    assert [path for path, _ in catalogue.left_out] == [
        *(f"B_00{n}-0001-1.0.jpg" for n in (2, 3)),
        "B_004-0001-1.0.png",
        *(f"B_00{n}-0001-1.0.jpg" for n in (5, 6)),
    ]
    assert all(reason for _, reason in catalogue.left_out)


def test_the_folder_of_results_within_the_scans_is_excluded(tmp_path):
    write_scan(tmp_path / "B_001-0001-1.0.jpg", 1)
    write_scan(tmp_path / "labelled" / "B_002-0001-1.0.jpg", 2)
    catalogue = Catalogue.read(tmp_path, BINARY, exclude=[tmp_path / "labelled"])
    assert [frame.path for frame in catalogue.frames] == ["B_001-0001-1.0.jpg"]


@pytest.mark.parametrize("content", [{}, {"B_001-0001-1.0.jpg": b"damaged"}])
def test_there_must_be_a_frame(tmp_path, content):
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=str(tmp_path)):
        Catalogue.read(tmp_path, BINARY)
    with pytest.raises(InputError, match="missing"):
        Catalogue.read(tmp_path / "missing", BINARY)


def test_sizes_are_upright_and_a_long_header_is_read(tmp_path):
    pixels = np.asarray(Image.open(write_scan(tmp_path / "B_001-0001-1.0.jpg", 1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "B_001-0001-1.0.jpg", exif=exif)
    long = images.encode(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2))
    comments = b"".join(b"\xff\xfe\xff\xff" + b"x" * 65533 for _ in range(2))
    (tmp_path / "B_001-0002-1.0.jpg").write_bytes(long[:20] + comments + long[20:])
    catalogue = Catalogue.read(tmp_path, BINARY)
    assert [(frame.width, frame.height) for frame in catalogue.frames] == [(80, 96), (96, 80)]
    assert images.decode(catalogue.bytes(catalogue.frames[0])).shape[:2] == (96, 80)


def vanish(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace(path: Path) -> None:
    write_scan(path, 9, (64, 48))


def no_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [vanish, truncate, empty, replace, no_file])
def test_a_frame_that_is_not_what_it_was(tmp_path, harm):
    bad, good = (write_scan(tmp_path / f"B_00{n}-0001-1.0.jpg", n) for n in (1, 2))
    catalogue = Catalogue.read(tmp_path, BINARY)
    harm(bad)
    with pytest.raises(GoneError, match=bad.name):
        catalogue.bytes(catalogue.frames[0])
    assert catalogue.bytes(catalogue.frames[1]) == good.read_bytes()


def test_a_frame_that_comes_back(tmp_path):
    path = write_scan(tmp_path / "B_001-0001-1.0.jpg", 1)
    catalogue = Catalogue.read(tmp_path, BINARY)
    shutil.move(path, tmp_path / ".away")
    with pytest.raises(GoneError):
        catalogue.bytes(catalogue.frames[0])
    shutil.move(tmp_path / ".away", path)
    assert catalogue.bytes(catalogue.frames[0]) == path.read_bytes()


def downloads(gcs) -> list[str]:
    """Return what was downloaded through the proxy."""
    return [path for method, path in gcs.proxy.requests if method == "GET" and "alt=media" in path]


def test_a_bucket(gcs, tmp_path):
    data = write_scan(tmp_path / "scan.jpg", 1).read_bytes()
    names = ["scans/B_001-0001-1.0.jpg", "scans/sub/M_002-0001-1.0.jpg"]
    damaged = {"scans/B_003-0001-1.0.jpg": b"damaged", "scans/B_004-0001-1.0.jpg": b""}
    gcs.put(dict.fromkeys(names, data) | damaged)
    catalogue = Catalogue.read(gcs.address("scans"), BINARY)
    assert [path for path, _ in catalogue.left_out] == ["B_004-0001-1.0.jpg"]  # the listing says that it is empty
    catalogue.measure(catalogue.paths)
    assert [frame.path for frame in catalogue.frames] == ["B_001-0001-1.0.jpg", "sub/M_002-0001-1.0.jpg"]
    assert [path for path, _ in catalogue.left_out] == ["B_003-0001-1.0.jpg", "B_004-0001-1.0.jpg"]
    assert (catalogue.frames[0].width, catalogue.frames[0].height) == (96, 80)
    assert catalogue.bytes(catalogue.frames[1]) == data
    gcs.client.bucket(gcs.bucket).delete_blob(names[1])
    with pytest.raises(GoneError):
        catalogue.bytes(catalogue.frames[1])
    assert catalogue.bytes(catalogue.frames[0]) == data


def test_a_bucket_is_read_only_where_a_frame_is_needed_and_once(gcs, tmp_path):
    data = write_scan(tmp_path / "scan.jpg", 1).read_bytes()
    gcs.put({f"scans/B_{n:03d}-0001-1.0.jpg": data for n in range(1, 21)} | {"scans/B_021-0001-1.0.jpg": b"damaged"})
    catalogue = Catalogue.read(gcs.address("scans"), BINARY)
    assert len(catalogue.frames) == 21
    assert downloads(gcs) == []
    first, second = catalogue.frames[:2]
    assert (first.width, first.height, first.width) == (96, 80, 96)
    assert catalogue.bytes(second) == data
    assert (second.width, second.height) == (96, 80)  # known from the picture
    assert len(downloads(gcs)) == 2
    catalogue.measure([first.path, second.path, catalogue.frames[2].path])
    assert len(downloads(gcs)) == 3
    for _ in range(2):
        with pytest.raises(GoneError, match="B_021"):
            _ = catalogue.frames[-1].width
    assert len(downloads(gcs)) == 4
    catalogue.keep_sizes()
    again = Catalogue.read(gcs.address("scans"), BINARY)
    assert [(frame.width, frame.height) for frame in again.frames[:3]] == [(96, 80)] * 3
    assert len(downloads(gcs)) == 4
    gcs.put({"scans/B_001-0001-1.0.jpg": write_scan(tmp_path / "scan.jpg", 9, (64, 48)).read_bytes()})
    assert again.refresh() == {first.path}
    assert (again.frames[0].width, again.frames[0].height) == (64, 48)
    assert len(downloads(gcs)) == 5


def test_boxes_are_checked_against_frames_of_a_bucket(gcs, tmp_path):
    """Nothing is known of the sizes, and a reading of another picture, or of a damaged one, does not count."""
    good = write_scan(tmp_path / "scan.jpg", 1).read_bytes()
    gcs.put({f"scans/B_{n:03d}-0001-1.0.jpg": good for n in (1, 2)} | {"scans/B_003-0001-1.0.jpg": b"damaged"})
    bench = Labelling.of(gcs.address("scans"), tmp_path / "labelled")
    bench.say(bench.paths[0], nodules((10, 10, 86, 70)))
    bench.say(bench.paths[1], nodules((10, 10, 87, 70)))
    bench.say(bench.paths[2], nodules((1, 1, 10, 10)))
    assert [bench.state(path)[0] for path in bench.paths] == [State.SINGLE, State.OPEN, State.OPEN]
    bench.tables.write()
    assert [row["filename"] for row in bench.rows("rois.csv")] == ["B_001-0001-1.0.jpg"]
    assert bench.paths == ["B_001-0001-1.0.jpg", "B_002-0001-1.0.jpg"]
    row = bench.rows("rois.csv")[0]
    bench.edit("rois.csv", lambda rows: [*rows, row | {"filename": "B_002-0001-1.0.jpg", "x": "90"}])
    with pytest.raises(InputError, match=r"rois\.csv: line 3: .*outside the 96x80 image"):
        bench.tables.write()


@pytest.mark.parametrize("seconds", [-1.0, 60.0])
def test_only_what_is_new_or_has_changed_is_looked_at_again(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(listing, "SETTLED_SECONDS", seconds)
    for n in (1, 2, 3):
        write_scan(tmp_path / f"B_{n:03d}-0001-1.0.jpg", n)
    (tmp_path / "B_009-0001-1.0.jpg").write_bytes(b"damaged")
    catalogue = Catalogue.read(tmp_path, BINARY)
    before, first = catalogue.frames, catalogue.frames[0]
    read, plain = [], label_pictures.size

    def size(place, file):
        read.append(file.relative)
        return plain(place, file)

    monkeypatch.setattr(label_pictures, "size", size)
    if seconds > 0:  # each of them may have changed unnoticed
        assert catalogue.refresh() == {frame.path for frame in before}
        assert len(read) == 4
        return
    assert catalogue.refresh() == set()
    assert catalogue.frames is before
    write_scan(tmp_path / "sub" / "M_004-0001-1.0.jpg", 4)
    write_scan(tmp_path / "B_009-0001-1.0.jpg", 9)
    write_scan(tmp_path / "B_002-0001-1.0.jpg", 7, (64, 48))
    (tmp_path / "B_003-0001-1.0.jpg").unlink()
    changed = {"sub/M_004-0001-1.0.jpg", "B_009-0001-1.0.jpg", "B_002-0001-1.0.jpg", "B_003-0001-1.0.jpg"}
    assert catalogue.refresh() == changed
    assert sorted(read) == sorted(changed - {"B_003-0001-1.0.jpg"})
    assert catalogue.frames[0] is first
    assert [(frame.path, frame.width) for frame in catalogue.frames] == [
        ("B_001-0001-1.0.jpg", 96),
        ("B_002-0001-1.0.jpg", 64),
        ("B_009-0001-1.0.jpg", 96),
        ("sub/M_004-0001-1.0.jpg", 96),
    ]
    assert catalogue.left_out == ()
    assert catalogue.by_path(before[2].path) is None
    assert catalogue.of(before[2].id) is before[2]
    with pytest.raises(GoneError, match=r"B_003.* not among the scans"):
        catalogue.bytes(before[2])
    now = catalogue.frames
    for frame in now:
        (tmp_path / frame.path).unlink()
    with pytest.raises(InputError, match=str(tmp_path)):
        catalogue.refresh()
    assert catalogue.frames is now


def test_another_table_of_labels_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)
    for name in ("a.jpg", "b.jpg"):
        write_scan(tmp_path / "scans" / name, ord(name[0]))
    (tmp_path / "labels.csv").write_text("filename,label\na.jpg,B\n")
    catalogue = Catalogue.read(tmp_path / "scans", BINARY, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("filename,label\na.jpg,B\nb.jpg,M\n")
    assert catalogue.refresh() == {"b.jpg"}
    assert [frame.label for frame in catalogue.frames] == ["B", "M"]


def test_dicom_files(tmp_path, monkeypatch):
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, KEY)
    (tmp_path / "Roe Jane.dcm").write_bytes(dicoms.write(dicoms.cine(5), name="Roe^Jane", patient="ID 7"))
    (tmp_path / "other.dcm").write_bytes(dicoms.write(dicoms.frame(3), patient="ID 8"))
    (tmp_path / "unlisted.dcm").write_bytes(dicoms.write(dicoms.frame(4)))
    (tmp_path / "dicom.csv").write_text("filename,label,frame\nRoe Jane.dcm,M,2\nRoe Jane.dcm,M,\nother.dcm,B,\n")
    catalogue = Catalogue.read(tmp_path, BINARY)
    assert [(f.path, f.number, f.label, f.file) for f in catalogue.frames] == [
        ("Roe Jane.dcm#2", 2, "M", "Roe Jane.dcm"),
        ("Roe Jane.dcm#3", 3, "M", "Roe Jane.dcm"),  # the middle one
        ("other.dcm#1", 1, "B", "other.dcm"),
    ]
    first, second, other = catalogue.frames
    assert first.group == second.group == f"patient-{pseudonyms.patient_number(KEY.encode(), 'ID 7')}"
    assert first.group != other.group
    assert first.short == pseudonyms.file_pseudonym(KEY.encode(), "Roe Jane.dcm", "2").rsplit("/", 1)[-1]
    assert [path for path, _ in catalogue.left_out] == ["unlisted.dcm"]
    shown = catalogue.bytes(first)
    assert images.kind(shown) == "PNG"
    pixels = images.decode(shown, formats=("PNG",))
    assert pixels.shape[:2] == (first.height, first.width)
    left, top, right, bottom = dicoms.TEXT
    assert not pixels[top:bottom, left:right].any()  # the patient's name
    (tmp_path / "other.dcm").unlink()
    with pytest.raises(GoneError):
        catalogue.bytes(other)


def test_dicom_files_need_the_key(tmp_path, monkeypatch):
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)
    (tmp_path / "a.dcm").write_bytes(dicoms.write(dicoms.frame(3)))
    with pytest.raises(InputError, match=pseudonyms.KEY_VARIABLE):
        Catalogue.read(tmp_path, BINARY)
