"""The lexicon of ACR TI-RADS: words, points and levels, also where not everything is certain."""

import itertools
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import thyroid
from thyroid import tirads
from thyroid.tirads import DECK, DESCRIPTORS, FOCI, Points

WORDS = Path(thyroid.__file__).parent / "label" / "words"
EXCLUSIVE = [name for name in DESCRIPTORS if name != FOCI]
KINDS = tirads.kinds(FOCI)


def certain(composition: str, echogenicity: str, shape: str, margin: str, *foci: str) -> Points:
    """Points of a nodule about which everything is known."""
    words = (composition, echogenicity, shape, margin)
    return tirads.points({name: [word] for name, word in zip(EXCLUSIVE, words, strict=True)} | {FOCI: foci}, foci)


@pytest.mark.parametrize(
    ("nodule", "points", "level"),
    [
        (("cystic", "anechoic", "wider", "smooth"), 0, "TR1"),
        (("cystic", "anechoic", "wider", "smooth", "comet_tail"), 0, "TR1"),
        (("spongiform", "very_hypoechoic", "taller", "extrathyroidal", "punctate", "rim"), 0, "TR1"),
        (("mixed", "anechoic", "wider", "smooth"), 1, "TR1"),
        (("mixed", "isoechoic", "wider", "ill_defined"), 2, "TR2"),
        (("solid", "hyperechoic", "wider", "smooth"), 3, "TR3"),
        (("solid", "hypoechoic", "wider", "smooth"), 4, "TR4"),
        (("solid", "hypoechoic", "wider", "lobulated"), 6, "TR4"),
        (("solid", "isoechoic", "wider", "smooth", "macro", "punctate"), 7, "TR5"),
        (("solid", "very_hypoechoic", "taller", "extrathyroidal", "punctate", "rim", "macro"), 17, "TR5"),
    ],
)
def test_points_and_levels_are_those_of_the_white_paper(nodule, points, level):
    assert certain(*nodule) == Points(points, points)
    assert Points(points, points).levels == (level, level)


def test_of_a_nodule_that_nobody_has_looked_at_everything_is_possible():
    assert tirads.points({}) == Points(0, 17)
    assert tirads.points({}).levels == ("TR1", "TR5")


@given(
    possible=st.fixed_dictionaries(
        {}, optional={name: st.sets(st.sampled_from(list(DESCRIPTORS[name])), min_size=1) for name in EXCLUSIVE}
    ),
    kinds=st.none() | st.sets(st.sampled_from(KINDS)),
    sure=st.sets(st.sampled_from(KINDS)),
)
def test_an_interval_reaches_from_the_best_to_the_worst_nodule_that_is_possible(possible, kinds, sure):
    maybe = set(KINDS if kinds is None else kinds) - sure
    every = [possible.get(name, DESCRIPTORS[name]) for name in EXCLUSIVE]
    more = [set(some) for count in range(len(maybe) + 1) for some in itertools.combinations(maybe, count)]
    sums = []
    for words in itertools.product(*every):
        worth = sum(DESCRIPTORS[name][word] for name, word in zip(EXCLUSIVE, words, strict=True))
        foci = [sum(DESCRIPTORS[FOCI][kind] for kind in sure | some) for some in more]
        sums += [0 if words[0] == "spongiform" else worth + one for one in foci]
    found = tirads.points(possible if kinds is None else possible | {FOCI: kinds}, sure)
    assert (found.low, found.high) == (min(sums), max(sums))


def test_a_descriptor_has_a_value():
    with pytest.raises(ValueError, match="margin"):
        tirads.points({"margin": []})


@pytest.mark.parametrize(
    ("descriptor", "word", "values"),
    [
        ("composition", "predominantly-solid", {"mixed"}),
        ("composition", "Predominantly cystic", {"mixed"}),
        ("echogenicity", "marked-hypoechogenicity", {"very_hypoechoic"}),
        ("echogenicity", "VERY_HYPOECHOIC", {"very_hypoechoic"}),
        ("margin", "well-defined", {"smooth"}),
        ("margin", " ill   defined ", {"ill_defined"}),
        ("margin", "Spiculated", {"lobulated"}),
        ("margin", "macrolobulated", {"lobulated"}),
        ("shape", "taller-than-wide", {"taller"}),
        (FOCI, "non", {"none"}),
        (FOCI, "none", {"none"}),
        (FOCI, "microcalcification", {"punctate"}),
        (FOCI, "Punctate+macro", {"punctate", "macro"}),
        (FOCI, "peripheral; comet tails", {"rim", "comet_tail"}),
        (FOCI, "macro+macro", {"macro"}),
        (FOCI, unicodedata.normalize("NFD", "미세석회화"), {"punctate"}),
        ("margin", "불규칙", {"lobulated"}),
        (FOCI, "none+punctate", None),
        (FOCI, "macro+", None),
        (FOCI, "macro+blurry", None),
        (FOCI, "", None),
        ("composition", "solid+cystic", None),
        ("composition", "solid;", None),
        ("composition", "hypoechoic", None),
        ("margin", "", None),
    ],
)
def test_words_are_read(descriptor, word, values):
    assert tirads.parse(descriptor, word) == (None if values is None else frozenset(values))


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_words_that_the_bench_shows_are_read(language):
    shown = json.loads((WORDS / f"{language}.json").read_text())
    for descriptor, values in DESCRIPTORS.items():
        assert tirads.column(shown[f"feature_{descriptor}"]) == descriptor
        for value in values:
            assert tirads.parse(descriptor, shown[f"{descriptor}_{value}"]) == {value}, (descriptor, value)


def test_what_is_written_into_a_cell_is_read_again():
    assert tirads.cell(FOCI, {"punctate", "macro"}) == "macro+punctate"
    for count in range(1, len(KINDS) + 1):
        for some in itertools.combinations(KINDS, count):
            assert tirads.parse(FOCI, tirads.cell(FOCI, some)) == set(some)


def test_no_word_has_two_meanings():
    for descriptor in DESCRIPTORS:
        words = [tirads._folded(word) for value, more in tirads._WORDS[descriptor].items() for word in (value, *more)]
        assert len(words) == len(set(words)), descriptor
        assert tirads._WORDS[descriptor].keys() == DESCRIPTORS[descriptor].keys()


@pytest.mark.parametrize(
    ("name", "descriptor"),
    [("margins", "margin"), ("Calcifications", FOCI), ("경계", "margin"), ("석회화", FOCI), ("Shape", "shape")],
)
def test_names_of_columns(name, descriptor):
    assert tirads.column(name) == descriptor
    assert tirads.column("tirads") is None


def test_the_six_of_the_deck_are_values_of_the_lexicon():
    assert len(DECK) == 6
    for parts in DECK.values():
        assert all(value in tirads.kinds(descriptor) for descriptor, value in parts)


def test_none_is_no_kind():
    assert tirads.kinds(FOCI) == ("comet_tail", "macro", "rim", "punctate")
    assert tirads.kinds("shape") == ("wider", "taller")
