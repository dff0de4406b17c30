import pytest

from thyroid.data import filenames


def test_reads_every_part():
    assert filenames.parse("B_001-0002-1.0.jpg") == filenames.ScanName("B", 1, 2, "1.0")


def test_patient_is_the_number_alone():
    assert filenames.parse("B_001-0002-1.0.jpg").patient == filenames.parse("M_1-0009-2.JPG").patient


@pytest.mark.parametrize(
    "name",
    [
        "C_001-0002-1.0.jpg",
        "B_001-0002.jpg",
        "B_001-0002-1.0.png",
        "B 001-0002-1.0.jpg",
        "B_00a-0002-1.0.jpg",
        "B_٠٠١-0002-1.0.jpg",
        "xB_001-0002-1.0.jpg",
        "B_001-0002-1.0.jpg\n",
        "갑상선.jpg",
        "",
    ],
)
def test_other_names_are_refused_with_the_scheme(name):
    with pytest.raises(ValueError, match=r"\{B\|M\}_\{patient\}-\{image\}-\{version\}\.jpg"):
        filenames.parse(name)
