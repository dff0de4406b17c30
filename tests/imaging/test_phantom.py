import csv

import numpy as np

from thyroid.data import filenames
from thyroid.imaging import images, phantom


def test_same_seed_same_pixels():
    one, two = phantom.draw("M", 3, 1, seed=5), phantom.draw("M", 3, 1, seed=5)
    np.testing.assert_array_equal(one.image, two.image)
    assert one.roi == two.roi
    assert not np.array_equal(one.image, phantom.draw("M", 3, 1, seed=6).image)


def test_images_of_a_patient_differ():
    assert not np.array_equal(phantom.draw("B", 1, 1).image, phantom.draw("B", 1, 2).image)


def test_frame_and_roi():
    for patient in range(12):
        drawn = phantom.draw("BM"[patient % 2], patient, 1)
        x, y, width, height = drawn.roi
        assert drawn.image.shape == (phantom.FRAME[1], phantom.FRAME[0], 3)
        assert min(x, y) > 0
        assert x + width < phantom.FRAME[0]
        assert y + height < phantom.FRAME[1]
        assert min(width, height) > 20


def test_says_that_it_is_synthetic_whatever_the_label():
    """The banner is there, and the text above the scan area does not depend on the label."""
    benign, malignant = phantom.draw("B", 1, 1).image[:18], phantom.draw("M", 1, 1).image[:18]
    assert (benign > 200).sum() > 300
    np.testing.assert_array_equal(benign, malignant)


def test_generates_the_naming_scheme_and_rois(phantoms):
    files = sorted((phantoms / "scans").iterdir())
    assert len(files) == 30
    parsed = [filenames.parse(file.name) for file in files]
    assert {name.patient for name in parsed} == set(range(1, 16))
    assert sum(name.label == "B" for name in parsed) == 18
    with (phantoms / "rois.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["filename"] for row in rows) == [file.name for file in files]


def test_number_of_processes_does_not_matter(phantoms):
    file = sorted((phantoms / "scans").iterdir())[-1]
    name = filenames.parse(file.name)
    assert file.read_bytes() == images.encode(
        phantom.draw(name.label, name.patient, name.image, seed=1).image, phantom.MARK
    )


def test_signs_are_imperfect():
    for odds in phantom.SIGNS.values():
        assert 0 < odds["B"] < 1
        assert 0 < odds["M"] < 1
