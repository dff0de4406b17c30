"""The texts of the bench: both languages say the same things, and every text that is asked for is there."""

import json
import re
from pathlib import Path

import thyroid.label
from thyroid.label.readings import FEATURES, Origin, Verdict

FOLDER = Path(thyroid.label.__file__).parent


def texts(language: str) -> dict[str, str]:
    """The bench's texts, before those that it shares with the page."""
    page = FOLDER.parent / "web" / "words" / f"{language}.json"
    return json.loads(page.read_text()) | json.loads((FOLDER / "words" / f"{language}.json").read_text())


def test_both_languages_have_the_same_texts_with_the_same_fields():
    english, korean = texts("en"), texts("ko")
    assert english.keys() == korean.keys()
    for key, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", korean[key])), key


def test_every_text_that_is_asked_for_is_there():
    known = texts("en")
    for file in (FOLDER / "templates").glob("*.html"):
        asked = re.findall(r"\bw\('(\w+)'[,)]", file.read_text())
        assert set(asked) <= known.keys(), file.name
    for file in (FOLDER / "static").glob("*.js"):
        asked = re.findall(r"\bsay\('(\w+)'[,)]", file.read_text())
        assert set(asked) <= known.keys(), file.name


def test_every_feature_verdict_and_origin_has_a_name():
    known = texts("en")
    for name, values in FEATURES.items():
        assert {f"feature_{name}", *(f"{name}_{value}" for value in values)} <= known.keys()
    assert {f"verdict_{one}" for one in Verdict} | {f"origin_{one}" for one in Origin} <= known.keys()


def test_no_text_is_left_over():
    shown = "\n".join(
        file.read_text()
        for folder in (FOLDER / "templates", FOLDER / "static", FOLDER / "server", FOLDER, FOLDER.parent / "web")
        for file in folder.glob("*.*")
        if file.suffix in (".html", ".js", ".py")
    )
    own = json.loads((FOLDER / "words" / "en.json").read_text())
    groups = (
        "queue_",
        "key_",
        "state_",
        "origin_",
        "verdict_",
        "held_",
        "hint_",
        "feature_",
        *(f"{n}_" for n in FEATURES),
    )
    base = ("title", "footer")
    left = [
        key for key in own if not key.startswith((*groups, *base)) and f"{key}'" not in shown and f'{key}"' not in shown
    ]
    assert left == []
