import datetime

import pytest

from thyroid.errors import InputError
from thyroid.watch.options import WatchOptions

TODAY = datetime.datetime.now(datetime.UTC).date()
BAD = {
    "no such day": ({"night": "2025-02-30"}, "night 2025-02-30: there is no such day"),
    "a time": ({"night": "2025-02-03T10:00"}, "is no date"),
    "a week": ({"night": "2025-W06-1"}, "is no date"),
    "tomorrow": ({"night": str(TODAY + datetime.timedelta(days=2))}, "is in the future"),
    "no fall": ({"fall": 0.0}, "fall 0: must be at least 0.01"),
    "tiny fall": ({"fall": 0.009}, "fall 0.009: must be at least 0.01"),
    "whole fall": ({"fall": 1.0}, "fall 1: must be at least 0.01 and below 1"),
    "nan fall": ({"fall": float("nan")}, "fall nan"),
    "fall below nothing": ({"fall": 0.2, "specificity": 0.15}, "must be smaller than the specificity"),
    "few cancers": ({"cancers": 9}, "cancers 9: must be at least 10"),
    "many cancers": ({"cancers": 100_001}, "cancers 100001: must be at most 100000"),
    "perfect": ({"sensitivity": 1.0}, "sensitivity 1: must be at least 0 and below 1"),
    "negative": ({"specificity": -0.1}, "specificity -0.1"),
    "seed": ({"seed": -1}, "seed -1"),
    "boxes of nothing": ({"rois": "rois.csv"}, "rois: they are the boxes of new scans"),
    "nothing to watch": ({"log": ""}, "give the folder of the decision log"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_before_anything_is_read(name):
    given, words = BAD[name]
    with pytest.raises(InputError, match=words):
        WatchOptions("registry", **{"log": "decisions"} | given).check_sources()


def test_the_last_night_is_today_unless_it_is_given():
    assert TODAY <= WatchOptions("registry", "decisions").last_night <= TODAY + datetime.timedelta(days=1)
    assert WatchOptions("registry", "decisions", night="2025-02-03").last_night == datetime.date(2025, 2, 3)
    assert WatchOptions("registry", archive="gs://bucket/archive").log == ""
