"""One frame of an ultrasound file: its pixels in every transfer syntax, no patient data, and no crash on any bytes."""

import io
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from tests.support import dicoms
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.imaging import dicom, dicom_guard, dicom_picture, images

X0, Y0, X1, Y1 = dicoms.REGION
INSIDE = np.s_[Y0 + 2 : Y1 - 1, X0 + 2 : X1 - 1]


def grey(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def difference(pixels: np.ndarray, picture: np.ndarray) -> float:
    """The largest within the tissue; outside all must be black."""
    outside = np.ones(pixels.shape[:2], bool)
    outside[Y0 : Y1 + 1, X0 : X1 + 1] = False
    assert not pixels[outside].any()
    assert pixels.dtype == np.uint8
    return np.abs(pixels.astype(float) - grey(picture))[INSIDE].max()


def real(name: str) -> bytes:
    """A file that pydicom ships."""
    return Path(get_testdata_file(name, download=False)).read_bytes()


def changed(data: bytes, **tags) -> bytes:
    """A file with other values of some tags; None leaves one out."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    dicoms.retag(dataset, **tags)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset)
    return buffer.getvalue()


def refused(data: bytes, code: str, frame: int | None = None) -> str:
    with pytest.raises(dicom_picture.DicomError) as caught:
        dicom.read(data, frame)
    assert caught.value.code == code
    assert "Roe" not in str(caught.value)
    assert "ID-7" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("regions", [(dicoms.REGION,), ()], ids=["regions", "none"])
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
@pytest.mark.parametrize("syntax", dicoms.SYNTAXES)
def test_pixels_of_every_transfer_syntax(syntax, colour, regions):
    picture = dicoms.frame(3, colour)
    done = dicom.read(dicoms.write(picture, dicoms.SYNTAXES[syntax], regions=regions))
    assert difference(done.pixels, picture) <= (0 if syntax in dicoms.LOSSLESS else 24)
    assert (done.frame, done.frames, done.instance, done.patient) == (1, 1, 1, "ID-7")
    assert done.regions == bool(regions)


@pytest.mark.parametrize("syntax", dicoms.SYNTAXES)
def test_any_frame_of_every_transfer_syntax(syntax):
    cine = dicoms.cine(4, 7)
    data = dicoms.write(cine, dicoms.SYNTAXES[syntax])
    for frame in (None, 1, 2, 4):
        done = dicom.read(data, frame)
        assert (done.frame, done.frames) == (frame or 2, 4)
        assert difference(done.pixels, cine[done.frame - 1]) <= (0 if syntax in dicoms.LOSSLESS else 24)
    for frame in (0, 5, -1, 10**9):
        assert f"there is no frame {frame}; the file has 4" in refused(data, "frame", frame)


@pytest.mark.parametrize("syntax", ["rle", "jpeg-ls", "jpeg-2000", "jpeg-baseline"])
def test_an_extended_offset_table(syntax):
    cine = dicoms.cine(3, 7)
    done = dicom.read(dicoms.write(cine, dicoms.SYNTAXES[syntax], extended=True), 3)
    assert difference(done.pixels, cine[2]) <= (0 if syntax in dicoms.LOSSLESS else 24)


@pytest.mark.parametrize(
    ("photometric", "colour", "syntaxes", "tolerance"),
    [
        ("MONOCHROME1", False, ["explicit", "big-endian", "rle", "jpeg-ls", "jpeg-2000", "jpeg-lossless"], 0),
        ("PALETTE COLOR", False, ["explicit", "big-endian", "deflated", "rle", "jpeg-ls"], 0),
        ("YBR_FULL", True, ["explicit", "implicit", "rle", "jpeg-ls"], 3),
        ("YBR_FULL_422", True, ["explicit", "implicit", "big-endian", "deflated"], 30),
    ],
)
def test_other_ways_to_say_colours(photometric, colour, syntaxes, tolerance):
    picture = dicoms.frame(4, colour)
    for syntax in syntaxes:
        done = dicom.read(dicoms.write(picture, dicoms.SYNTAXES[syntax], photometric=photometric))
        assert difference(done.pixels, picture) <= tolerance, syntax


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big-endian", "deflated", "rle", "jpeg-ls", "jpeg-2000"])
def test_sixteen_bits(syntax):
    picture = dicoms.frame(5)
    done = dicom.read(dicoms.write(picture.astype(np.uint16) * 257, dicoms.SYNTAXES[syntax]))
    assert difference(done.pixels, picture) == 0
    twelve = dicoms.write(picture.astype(np.uint16) * 16, dicoms.EXPLICIT, BitsStored=12, HighBit=11)
    assert difference(dicom.read(twelve).pixels, picture) <= 1


def test_a_window():
    picture = dicoms.frame(5)
    data = dicoms.write(picture.astype(np.uint16) + 1000, WindowCenter=1128, WindowWidth=256)
    assert difference(dicom.read(data).pixels, picture) <= 1
    data = dicoms.write(picture, WindowCenter=64, WindowWidth=128)
    shown = np.clip(picture.astype(float) * 2, 0, 255)
    assert difference(dicom.read(data).pixels, shown) <= 3


def test_jpegs_of_more_than_eight_bits_are_refused_in_words():
    wide = dicoms.frame(5).astype(np.uint16) * 257
    assert "JPEG" in refused(dicoms.write(wide, dicoms.JPEG_LOSSLESS), "damaged")


def test_a_transfer_syntax_that_no_decoder_takes_is_refused_in_words():
    data = dicoms.write(dicoms.frame(1), dicoms.JPEG_BASELINE)
    other = data.replace(dicoms.JPEG_BASELINE.encode(), b"1.2.840.10008.1.2.4.94")
    assert other != data
    assert "video" in refused(other, "damaged")


@pytest.mark.parametrize(
    ("name", "size", "frame", "regions", "lit"),
    [
        ("examples_jpeg2k.dcm", (640, 480), 1, False, (0.3, 0.6)),
        ("examples_palette.dcm", (800, 350), 1, True, (0.3, 0.6)),
        ("examples_rgb_color.dcm", (320, 240), 1, False, (0.3, 0.6)),
        ("examples_ybr_color.dcm", (320, 240), 15, True, (0.2, 0.6)),
        ("ExplVR_BigEnd.dcm", (80, 60), 1, False, (0.2, 1)),
    ],
)
def test_real_ultrasound(name, size, frame, regions, lit):
    done = dicom.read(real(name))
    assert (done.pixels.shape[1::-1], done.frame, done.regions) == (size, frame, regions)
    assert lit[0] <= (done.pixels > 0).any(axis=2).mean() <= lit[1]


@pytest.mark.parametrize("name", ["CT_small.dcm", "test-SR.dcm", "image_dfl.dcm", "rtplan.dcm", "MR_small_RLE.dcm"])
def test_what_is_no_ultrasound(name):
    assert "(US)" in refused(real(name), "modality")


BARS = {25: (0, 255, 0), 45: (0, 0, 255), 55: (128, 128, 255), 85: (192, 192, 192)}
"""Row to colour of pydicom's colour bars."""


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_jls_lossy_sample.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_rle_2frame.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ],
)
def test_colours_as_other_software_writes_them(name):
    pixels = dicom.read(changed(real(name), Modality="US", BurnedInAnnotation="NO"), 1).pixels
    for row, colour in BARS.items():
        assert np.abs(pixels[row, 50].astype(int) - colour).max() <= 5, row


def test_ultrasound_by_its_class_where_no_modality_is_told():
    assert dicom.read(dicoms.write(dicoms.frame(1), Modality=None)).frames == 1
    refused(dicoms.write(dicoms.frame(1), Modality=None, SOPClassUID=uid.CTImageStorage), "modality")
    for name in ("Roe Jane", "ROEJANE", "ROE19700101"):
        message = refused(dicoms.write(dicoms.frame(1), Modality=name), "modality")
        assert "unknown" in message
        assert "roe" not in message.lower()
    for known in ("CT", "RTPLAN", "XAPROTOCOL"):
        assert known in refused(dicoms.write(dicoms.frame(1), Modality=known), "modality")


# What is burned in.


def test_text_outside_the_regions_goes():
    picture = np.full((128, 160), 130, np.uint8)
    done = dicom.read(dicoms.write(picture, regions=[(10, 20, 70, 100), (85, 30, 150, 110)]))
    allowed = np.zeros_like(picture, bool)
    allowed[20:101, 10:71] = allowed[30:111, 85:151] = True
    assert not done.pixels[~allowed].any()
    assert (done.pixels[allowed] > 0).all(axis=1).mean() > 0.95


def test_regions_that_are_no_tissue_and_corners_outside_the_picture():
    def region(kind: int, *corners: int) -> Dataset:
        one = Dataset()
        one.RegionSpatialFormat = kind
        for name, value in zip(("MinX0", "MinY0", "MaxX1", "MaxY1"), corners, strict=True):
            one.add_new(f"RegionLocation{name}", "SL", value)
        return one

    picture = dicoms.frame(2)
    spectral = region(3, 0, 0, 159, 20)
    data = dicoms.write(picture, SequenceOfUltrasoundRegions=[region(1, X0, Y0, 10_000, 10_000), spectral])
    assert difference(dicom.read(data).pixels, picture) == 0
    assert "2D" in refused(dicoms.write(picture, SequenceOfUltrasoundRegions=[spectral]), "pixels")
    for corners in ((0, 0, -2, -2), (-50, -50, -1, -1), (500, 500, 600, 600), (100, 100, 50, 50)):
        refused(dicoms.write(picture, SequenceOfUltrasoundRegions=[region(1, *corners)]), "pixels")


@pytest.mark.parametrize("seed", range(8))
def test_text_beside_the_tissue_goes_without_regions(seed):
    picture = dicoms.frame(seed, text="ROE, JANE 1970")
    left, top, right, bottom = dicoms.TEXT
    assert picture[top:bottom, left:right].max() > 200
    assert difference(dicom.read(dicoms.write(picture, regions=())).pixels, picture) == 0


def test_a_picture_without_a_scan_area():
    text = dicoms.frame(1)
    text[Y0:] = 0
    refused(dicoms.write(text, regions=()), "burned_in")
    assert (dicom.read(dicoms.write(text, regions=(), BurnedInAnnotation="NO")).pixels == grey(text)).all()


def test_a_png_has_pixels_and_nothing_else():
    for picture in (grey(dicoms.frame(1)), dicoms.frame(1, colour=True)):
        data = dicom.png(picture)
        assert (images.decode(data, formats=("PNG",)) == picture).all()
        chunks, place = [], 8
        while place < len(data):
            chunks.append(data[place + 4 : place + 8])
            place += 12 + struct.unpack(">I", data[place : place + 4])[0]
        assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}


# What is damaged, or wants to do damage.


def test_without_pixels():
    refused(dicoms.write(dicoms.frame(1), PixelData=None), "pixels")
    refused(dicoms.write(dicoms.frame(1), PixelData=b""), "pixels")


@pytest.mark.parametrize("syntax", ["explicit", "deflated", "rle", "jpeg-baseline", "jpeg-2000", "jpeg-ls"])
def test_a_header_that_says_too_much(syntax):
    picture = dicoms.frame(1)
    message = refused(dicoms.write(picture, dicoms.SYNTAXES[syntax], Rows=60_000, Columns=60_000), "size")
    assert "60000x60000" in message
    refused(dicoms.write(picture, dicoms.SYNTAXES[syntax], Rows=8), "size")
    refused(dicoms.write(picture, dicoms.SYNTAXES[syntax], Rows=1000), "damaged")
    refused(dicoms.write(picture, dicoms.SYNTAXES[syntax], NumberOfFrames=1000), "damaged")
    refused(dicoms.write(picture, dicoms.SYNTAXES[syntax], NumberOfFrames=-1), "damaged")


@pytest.mark.parametrize("syntax", ["jpeg-baseline", "jpeg-lossless", "jpeg-ls", "jpeg-2000"])
@pytest.mark.parametrize(("rows", "samples"), [(dicoms.SIZE[1] // 2, 1), (dicoms.SIZE[1], 3)])
def test_a_compressed_image_of_another_size_than_the_header(syntax, rows, samples):
    data = dicoms.write(dicoms.frame(1), dicoms.SYNTAXES[syntax], Rows=rows, SamplesPerPixel=samples)
    assert "size" in refused(data, "damaged")


def test_an_image_in_a_file_format_of_its_own_is_not_looked_into():
    buffer = io.BytesIO()
    Image.new("L", (4000, 4000)).save(buffer, "JPEG2000")
    for syntax in (dicoms.JPEG_2000, dicoms.JPEG_BASELINE, dicoms.JPEG_LS):
        data = dicoms.write(dicoms.frame(1), syntax, PixelData=encapsulate([buffer.getvalue()]))
        assert "header" in refused(data, "damaged")


def test_a_deflated_file_is_inflated_as_far_as_its_picture_asks_for():
    """Neither what comes before the pixels nor what comes behind takes memory."""
    assert dicom.read(dicoms.deflated_bomb(1)).frames == 1
    length = 100 << 20
    padding = b"\xfc\xff\xfc\xffOB\0\0" + length.to_bytes(4, "little") + bytes(length)
    bombs = dicoms.deflated_bomb(100), dicoms.deflated_with(b"", padding)
    assert sum(map(len, bombs)) < 300_000
    code = (
        "import resource, sys; from thyroid.imaging import dicom\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "given, before = sys.stdin.buffer.read(), most()\n"
        "for data in (given[:int(sys.argv[1])], given[int(sys.argv[1]):]):\n"
        "    try: print(dicom.read(data).frames)\n"
        "    except dicom.DicomError as error: print(error.code)\n"
        "print(most() - before)"
    )
    command = [sys.executable, "-c", code, str(len(bombs[0]))]
    lines = subprocess.run(command, input=b"".join(bombs), capture_output=True, check=True).stdout.split()
    assert lines[:2] == [b"size", b"1"]
    assert int(lines[2]) < 40_000
    large = dicoms.write(np.zeros((4000, 4000), np.uint8), dicoms.DEFLATED, Rows=4000, Columns=2500, NumberOfFrames=51)
    assert "500,000,000" in refused(large, "size")


@pytest.mark.parametrize("syntax", ["deflated", "explicit", "implicit"])
def test_a_million_items_are_counted_and_not_built(syntax):
    """They would take minutes and gigabytes."""
    if syntax == "deflated":
        data = dicoms.regions_bomb(500_000)
        assert len(data) < 50_000
    else:
        empty = b"\xfe\xff\x00\xe0\0\0\0\0" * 500_000
        data = dicoms.write(dicoms.frame(1), dicoms.SYNTAXES[syntax], PixelData=empty)
    started = time.process_time()
    assert "20,000" in refused(data, "damaged")
    assert time.process_time() - started < 2


def test_a_number_that_no_table_could_hold_is_none():
    data = dicoms.write(dicoms.frame(1), InstanceNumber=7)
    huge = data.replace(b"\x20\x00\x13\x00IS\x02\x007 ", b"\x20\x00\x13\x00IS\x1e\x00" + b"9" * 30)
    assert huge != data
    assert dicom.read(huge).instance == 0


# By a process of its own.


def soon() -> float:
    return time.monotonic() + 60


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg-2000", "jpeg-baseline"])
def test_the_process_answers_as_the_function_does(syntax):
    data = dicoms.write(dicoms.cine(4, 7), dicoms.SYNTAXES[syntax])
    for frame in (None, 4):
        here, there = dicom.read(data, frame), dicom_guard.read(data, frame, soon())
        assert (there.pixels == here.pixels).all()
        assert (there.frame, there.frames, there.instance, there.regions) == (here.frame, 4, 1, True)
        assert there.patient == "", "nobody who asks has a use for it"
    with pytest.raises(dicom_picture.DicomError, match=r"\b5\b") as caught:
        dicom_guard.read(data, 5, soon())
    assert caught.value.code == "frame"
    with pytest.raises(dicom_picture.DicomError, match="CT"):
        dicom_guard.read(real("CT_small.dcm"), None, soon())


@pytest.fixture
def reader(monkeypatch):
    """A process of its own for one test, started with that test's limits."""
    one = dicom_guard._Reader()
    monkeypatch.setattr(dicom_guard, "_READER", one)
    yield one
    one._end()


@pytest.fixture(scope="module")
def endless() -> bytes:
    """A file of many empty elements: seconds of work, which nothing in it gives away."""
    data = dicoms.write(dicoms.frame(1), dicoms.IMPLICIT)
    at = data.index(b"\x28\x00\x02\x00\x02\x00\x00\x00")
    return data[:at] + b"\x27\x00\x01\x10\0\0\0\0" * 8_000_000 + data[at:]


def test_the_deadline_ends_the_work(reader, endless):
    """And not only the answer; the next file is read."""
    assert dicom_guard.read(dicoms.write(dicoms.frame(1)), None, soon()).frames == 1
    process = reader._process
    with pytest.raises(TimeoutError):
        dicom_guard.read(endless, None, time.monotonic() + 0.3)
    assert process.returncode == -signal.SIGKILL
    assert dicom_guard.read(dicoms.write(dicoms.frame(1)), None, soon()).frames == 1
    with reader._lock, pytest.raises(TimeoutError):
        dicom_guard.read(b"", None, time.monotonic())


def test_a_file_has_a_limit_of_processor_time(reader, endless, monkeypatch):
    monkeypatch.setattr(dicom_guard, "SECONDS", 0.4)
    with pytest.raises(dicom_picture.DicomError, match=r"0\.4 seconds"):
        dicom_guard.read(endless, None, soon())
    assert dicom_guard.read(dicoms.write(dicoms.frame(1)), None, soon()).frames == 1


def test_a_file_has_a_limit_of_memory(reader, monkeypatch):
    large = dicoms.write(np.full((1600, 1600, 3), 90, np.uint8), regions=(), BurnedInAnnotation="NO")
    assert dicom_guard.read(large, None, soon()).pixels.shape == (1600, 1600, 3)
    reader._end()
    monkeypatch.setattr(dicom_guard, "MEMORY", 20_000_000)
    with pytest.raises(dicom_picture.DicomError, match="memory"):
        dicom_guard.read(large, None, soon())
    assert dicom_guard.read(dicoms.write(dicoms.frame(1)), None, soon()).frames == 1


def test_the_process_goes_when_nobody_asks(reader, monkeypatch):
    monkeypatch.setattr(dicom_guard, "IDLE", 0.1)
    data = dicoms.write(dicoms.frame(1))
    assert dicom_guard.read(data, None, soon()).frames == 1
    assert reader._process.wait(timeout=30) == 0
    assert dicom_guard.read(data, None, soon()).frames == 1


def test_who_asks_needs_nothing_of_dicom():
    """The endpoint starts, and stays, without what reads these files."""
    code = "import sys, thyroid.imaging.dicom_guard; print('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"]


MUTATE = """
import random, sys
from thyroid.imaging import dicom
data, rng, read = sys.stdin.buffer.read(), random.Random(int(sys.argv[1])), 0
for number in range(int(sys.argv[2])):
    one = bytearray(data)
    if number % 5 == 0:
        one = one[: rng.randrange(len(one))]
    else:
        for _ in range(rng.choice([1, 1, 2, 5, 20, 100])):
            at = rng.randrange(len(one)) if rng.random() < 0.4 else rng.randrange(132, min(len(one), 2200))
            one[at] = rng.choice([0, 255, rng.randrange(256), one[at] ^ 1 << rng.randrange(8)])
    try:
        dicom.read(bytes(one))
        read += 1
    except dicom.DicomError as error:
        assert "Roe" not in str(error) and "ID-7" not in str(error), error
print(read)
"""


def check_mutations(syntax: str, colour: bool, count: int) -> None:
    data = dicoms.write(dicoms.frame(3, colour), dicoms.SYNTAXES[syntax])
    done = subprocess.run([sys.executable, "-c", MUTATE, "1", str(count)], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"Roe" not in done.stdout + done.stderr
    assert 0 < int(done.stdout) < count


# GDCM, pydicom's first choice, aborts on some of the colour ones
@pytest.mark.parametrize("syntax", ["explicit", "jpeg-lossless", "jpeg-ls", "jpeg-2000"])
def test_damaged_files_end_in_words(syntax):
    check_mutations(syntax, True, 400)


@pytest.mark.slow
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("syntax", dicoms.SYNTAXES)
def test_many_damaged_files_end_in_words(syntax, colour):
    check_mutations(syntax, colour, 1000)


@pytest.mark.parametrize("data", [b"", b"x", bytes(132), b"\xff\xd8\xff"])
def test_what_is_no_dicom_at_all(data):
    refused(data, "damaged")
    assert "unknown" in refused(bytes(128) + b"DICM" + bytes(500), "modality")


def test_nothing_is_printed_or_logged(capfd, caplog):
    for syntax in dicoms.SYNTAXES.values():
        data = dicoms.write(dicoms.frame(3, True), syntax, InstanceNumber=None, patient="Roe" * 40)
        dicom.read(data)
        for cut in (200, 600, len(data) // 2, len(data) - 100):
            with pytest.raises(dicom_picture.DicomError):
                dicom.read(data[:cut])
    assert not caplog.records
    assert "".join(capfd.readouterr()) == ""


# Pseudonyms.


@pytest.mark.parametrize("given", [None, "", "fifteen letters", "   fifteen letters   "])
def test_a_key_that_is_none(monkeypatch, given):
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(pseudonyms.KEY_VARIABLE, given)
    with pytest.raises(InputError, match=pseudonyms.KEY_VARIABLE) as caught:
        pseudonyms.required_key()
    assert "fifteen" not in str(caught.value)


def test_pseudonyms_depend_on_name_frame_and_key(monkeypatch):
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, " sixteen letters.\n")
    one, other = pseudonyms.required_key(), b"another secret key"
    assert one == b"sixteen letters."
    given = [
        pseudonyms.file_pseudonym(key, *name) for key in (one, other) for name in (("a",), ("a", "1"), ("b",), ("",))
    ]
    given.append(pseudonyms.file_pseudonym(one, "bad\udcff"))
    assert len(set(given)) == 9
    assert all(re.fullmatch(r"dicom/[0-9a-f]{24}\.dcm", name) for name in given)
    assert pseudonyms.file_pseudonym(one, "a") == given[0]
    numbers = {pseudonyms.patient_number(key, patient) for key in (one, other) for patient in ("1", "2", "홍길동")}
    assert len(numbers) == 6
    assert all(0 <= number < 10**18 for number in numbers)


def compressed(frame: bytes, syntax: str, **tags) -> bytes:
    """A file with this code stream in it, whatever its header says."""
    return dicoms.write(dicoms.frame(1), syntax, PixelData=encapsulate([frame]), **tags)


def code_stream(precinct: int | None = None, layers: int | None = None) -> bytes:
    """JPEG 2000 of `dicoms.frame`, with precincts of 2^precinct pixels or so many layers in its main header."""
    from openjpeg.utils import encode_array

    stream = encode_array(dicoms.frame(1), photometric_interpretation=2)
    place = stream.index(b"\xff\x52")
    length = int.from_bytes(stream[place + 2 : place + 4], "big")
    segment = bytearray(stream[place : place + 2 + length])
    if layers is not None:
        segment[6:8] = layers.to_bytes(2, "big")
    if precinct is not None:
        segment[4] |= 1
        segment += bytes([precinct * 17] * (segment[9] + 1))
        segment[2:4] = (len(segment) - 2).to_bytes(2, "big")
    return stream[:place] + bytes(segment) + stream[place + 2 + length :]


def test_a_sound_jpeg_2000_is_not_taken_for_a_bomb():
    assert dicom.read(compressed(code_stream(), dicoms.JPEG_2000)).pixels.shape == (128, 160, 3)


@pytest.mark.parametrize("stream", [code_stream(precinct=1), code_stream(precinct=4), code_stream(layers=60_000)])
def test_a_jpeg_2000_bomb_is_refused_before_it_is_decoded(stream):
    with pytest.raises(dicom_picture.DicomError, match="2000") as caught:
        dicom.read(compressed(stream, dicoms.JPEG_2000))
    assert caught.value.code == "damaged"


def test_a_progressive_jpeg_is_none_of_dicoms():
    buffer = io.BytesIO()
    Image.fromarray(dicoms.frame(1)).save(buffer, "JPEG", progressive=True)
    with pytest.raises(dicom_picture.DicomError, match="JPEG"):
        dicom.read(compressed(buffer.getvalue(), dicoms.JPEG_BASELINE))


def test_an_rle_bomb_is_refused():
    with pytest.raises(dicom_picture.DicomError, match="larger"):
        dicom.read(compressed(bytes(64) + bytes(1_000_000), dicoms.RLE))


def test_too_many_regions_are_refused():
    with pytest.raises(dicom_picture.DicomError, match=r"\b64\b"):
        dicom.read(dicoms.write(dicoms.frame(1), regions=[(i, i, i + 9, i + 9) for i in range(65)]))


def test_a_region_that_is_the_whole_frame_tells_nothing():
    """Its burned-in text is blanked as where there is no region; if it cannot be, the file is refused."""
    width, height = dicoms.SIZE
    everywhere = [(0, 0, width - 1, height - 1)]
    picture = dicom.read(dicoms.write(dicoms.frame(1), regions=everywhere))
    assert not picture.regions
    left, top, right, bottom = dicoms.TEXT
    assert not picture.pixels[top:bottom, left:right].any()
    small = np.zeros((480, 640), np.uint8)
    small[10:30, 10:200] = dicoms.frame(1)[2:16, 4:120].mean().astype(np.uint8)
    with pytest.raises(dicom_picture.DicomError) as caught:
        dicom.read(dicoms.write(np.where(small > 0, small, 0).astype(np.uint8), regions=[(0, 0, 639, 479)]))
    assert caught.value.code == "burned_in"
