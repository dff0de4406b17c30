import pytest

from thyroid.errors import InputError
from thyroid.locate.options import LocateOptions
from thyroid.train.options import TrainOptions


def test_defaults_are_those_of_the_training():
    ours, theirs = LocateOptions(), TrainOptions()
    for name in ("weights", "recipe", "registry", "champion", "work", "seed"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("share", [0.0, 0.999])
def test_a_share_that_leaves_some_frames_sure(share):
    assert LocateOptions(unsure=share).unsure == share


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"unsure": 1.0}, r"unsure 1\.0"),
        ({"unsure": -0.1}, r"unsure -0\.1"),
        ({"unsure": float("nan")}, "unsure nan"),
        ({"recipe": "cold"}, "'cold'"),
        ({"recipe": "mine.json"}, r"mine\.json"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, "seed 4294967296"),
    ],
)
def test_what_is_out_of_range_is_named(given, said):
    with pytest.raises(InputError, match=said):
        LocateOptions(**given)
