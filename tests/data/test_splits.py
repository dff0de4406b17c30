import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thyroid.data import splits
from thyroid.errors import InputError


def table(sizes: list[int], labels: str | None = None) -> pd.DataFrame:
    rows = []
    for group, size in enumerate(sizes):
        label = (labels or "BM" * len(sizes))[group]
        rows += [
            {"group": group, "class": label, "label": label, "sha256": f"{group:04d}-{i}", "split": None}
            for i in range(size)
        ]
    return pd.DataFrame(rows).astype({"split": "string"})


@given(st.lists(st.integers(1, 6), min_size=12, max_size=80), st.integers(0, 5))
def test_groups_stay_whole_and_every_split_has_both_classes(sizes, seed):
    scans = table(sizes)
    scans["split"] = splits.deal(scans, seed=seed)
    assert scans["split"].notna().all()
    assert (scans.groupby("group")["split"].nunique() == 1).all()
    splits.check(scans)


def test_fractions_hold_within_each_class():
    rng = np.random.default_rng(0)
    scans = table(list(rng.integers(1, 5, 600)))
    scans["split"] = splits.deal(scans)
    for label in "BM":
        share = scans.loc[scans["label"] == label, "split"].value_counts(normalize=True)
        for split, fraction in splits.FRACTIONS.items():
            assert share[split] == pytest.approx(fraction, abs=0.01)


@pytest.mark.parametrize(("seed", "expected"), [(0, "c0a741d5110ff07e"), (1, "792b02c153bd33a3")])
def test_patients_are_dealt_as_in_older_releases(seed, expected):
    """A patient who changes sides between two releases would be a leak."""
    rows = []
    for group in range(400):
        for image in range(1 + group % 4):
            is_other = image == 3 and group % 7 == 0
            rows.append(
                {
                    "class": "M" if (group % 5 < 2) != is_other else "B",
                    "group": group,
                    "sha256": hashlib.sha256(f"{group} {image}".encode()).hexdigest(),
                    "split": {0: "train", 1: "test"}.get(group % 13),
                }
            )
    dealt = splits.deal(pd.DataFrame(rows), seed=seed)
    assert hashlib.sha256("".join(dealt).encode()).hexdigest()[:16] == expected


def test_order_of_rows_does_not_matter():
    scans = table([2, 3, 1] * 20)
    shuffled = scans.sample(frac=1, random_state=3)
    pd.testing.assert_series_equal(splits.deal(scans), splits.deal(shuffled).sort_index())


def test_seed_matters():
    scans = table([1] * 100)
    assert not splits.deal(scans, seed=1).equals(splits.deal(scans, seed=2))


def test_a_group_keeps_its_split_and_new_ones_make_up_for_it():
    scans = table([1] * 200)
    scans.loc[:99, "split"] = "train"
    dealt = splits.deal(scans)
    assert (dealt[:100] == "train").all()
    assert dealt.value_counts(normalize=True)["train"] == pytest.approx(0.7, abs=0.02)


def test_a_giant_group_goes_to_train():
    scans = table([1] * 40 + [60, 60], "BM" * 21)
    assert (splits.deal(scans)[scans["group"] >= 40] == "train").all()


def test_three_patients_of_a_class_are_enough_and_two_are_not():
    splits.check(table([1] * 6).assign(split=splits.deal(table([1] * 6))))
    with pytest.raises(InputError, match=r"class M\b.*\b1 more"):
        splits.deal(table([1] * 5))


def test_patients_with_both_labels_count_for_both():
    scans = pd.concat([table([2] * 4, "MMMM"), table([2] * 4, "BBBB")], ignore_index=True)  # groups 0..3 hold both
    scans["sha256"] = [f"{i:03d}" for i in range(len(scans))]
    scans["split"] = splits.deal(scans)
    splits.check(scans)


def test_folds_deal_groups_whole_with_both_classes_in_each():
    scans = table([1 + i % 4 for i in range(60)])
    fold = splits.folds(scans, 5, seed=0)
    assert sorted(fold.index) == sorted(scans["group"].unique())
    per_fold = scans.assign(fold=scans["group"].map(fold)).groupby("fold")
    assert per_fold["label"].nunique().tolist() == [2] * 5
    assert per_fold.size().max() < 1.5 * per_fold.size().min()
    pd.testing.assert_series_equal(fold, splits.folds(scans.sample(frac=1, random_state=1), 5, seed=0))
    assert not fold.equals(splits.folds(scans, 5, seed=1))


def test_too_many_folds():
    with pytest.raises(InputError, match=r"7 folds.*class B\b.*\b6\b"):
        splits.folds(table([1] * 12), 7)


def graded(sizes: list[int], names: str) -> pd.DataFrame:
    """One group a letter; capitals count as malignant."""
    scans = table(sizes, names)
    return scans.assign(label=["M" if name.isupper() else "B" for name in scans["class"]])


@given(st.lists(st.integers(1, 5), min_size=20, max_size=60), st.integers(0, 5))
def test_every_split_has_every_class_of_five(sizes, seed):
    scans = graded(sizes, "abCDE" * len(sizes))
    scans["split"] = splits.deal(scans, seed=seed)
    assert (scans.groupby("group")["split"].nunique() == 1).all()
    assert (scans.groupby("split")["class"].nunique() == 5).all()
    splits.check(scans)


def test_fractions_hold_within_each_of_four_classes():
    scans = graded(list(np.random.default_rng(0).integers(1, 5, 800)), "abCD" * 200)
    scans["split"] = splits.deal(scans)
    for _, mine in scans.groupby("class"):
        share = mine["split"].value_counts(normalize=True)
        for split, fraction in splits.FRACTIONS.items():
            assert share[split] == pytest.approx(fraction, abs=0.02)


def test_a_class_with_one_patient_is_named():
    with pytest.raises(InputError, match=r"class B\b.*\b1 more"):
        splits.deal(graded([2] * 8, "aaabbbBB"))
    with pytest.raises(InputError, match=r"class C\b.*\b2 more"):
        splits.deal(graded([2] * 9 + [4], "aaabbbDDDC"))


def test_given_splits_that_lack_a_class_are_named():
    scans = graded([1] * 9, "aaabbbCCC").assign(split=["train", "validation", "test"] * 2 + ["train", "test", "test"])
    with pytest.raises(InputError, match=r"validation\b.*class C\b"):
        splits.check(scans)


def test_patients_with_scans_of_several_classes_stay_whole():
    rng = np.random.default_rng(0)
    scans = graded([1] * 120, "".join(rng.choice(list("abCD"), 120)))
    scans["group"] = np.arange(120) // 3
    scans["split"] = splits.deal(scans)
    assert (scans.groupby("group")["split"].nunique() == 1).all()
    splits.check(scans)


def test_folds_of_four_classes():
    scans = graded([1 + i % 3 for i in range(60)], "abCD" * 15)
    scans["fold"] = scans["group"].map(splits.folds(scans, 5))
    assert (scans.groupby("fold")["class"].nunique() == 4).all()
    with pytest.raises(InputError, match=r"16 folds.*class C\b.*\b15\b"):
        splits.folds(graded([1] * 64, "abD" * 16 + "C" * 15 + "a"), 16)
