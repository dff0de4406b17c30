"""Pooling sites from their counts: what equals the joined data, what holds it, and which files are refused."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from tests.support import ROOT
from tests.validate.share.sites import POINT, content, grouped, predicted, record, resigned, shared, simulated
from thyroid.errors import InputError
from thyroid.records.gate import AuditRecord
from thyroid.records.share import PoolRecord, Steps
from thyroid.validate.share import areas, check, command, figures, pool, share, signature


@pytest.fixture(scope="module")
def tables():
    """Three sites: two with mistakes enough to count them, and one with few."""
    third = predicted([0.15, 0.3, *np.linspace(0.45, 0.99, 40)], np.linspace(0.01, 0.6, 60))
    return {"Leiden": simulated(150, 200, 0.6, 1), "Kyoto": simulated(120, 130, 0.4, 2), "Quito": third}


@pytest.fixture(scope="module")
def home(tables, tmp_path_factory):
    """A folder with the files of the three sites and their keys."""
    folder = tmp_path_factory.mktemp("sites")
    for site, table in tables.items():
        sex = np.where(table["patient"] % 2, "F", "M")
        fields = {"domain": "cropped", "shortcut": {}, "kept": {}, "leakage": {}, "not_measured": {}}
        findings = {"shortcut": "most of the evidence is not in the nodule"} if site == "Kyoto" else {}
        shared(folder, site, table, grouped(table, sex=sex), audits=AuditRecord(**fields, findings=findings))
    return folder


@pytest.fixture
def sites(home, tmp_path):
    """A copy of the files to change."""
    folder = shutil.copytree(home, tmp_path / "sites")
    return [folder / f"{name}.json" for name in ("Leiden", "Kyoto", "Quito")]


@pytest.fixture(scope="module")
def pooled(home, tmp_path_factory):
    output = tmp_path_factory.mktemp("pooled")
    files = [home / f"{name}.json" for name in ("Leiden", "Kyoto", "Quito")]
    return pool.pool(files, home / "keys", output), output


def rates(table):
    called = (table["probability_M"] >= POINT.threshold).to_numpy()
    malignant = (table["label"] == "M").to_numpy()
    return called[malignant].mean(), (~called)[~malignant].mean()


def test_counts_of_all_patients_are_those_of_the_joined_data(tables, pooled):
    found, joined = pooled[0].figures, pd.concat(tables.values())
    sensitivity, specificity = rates(joined)
    low, high = found["sensitivity"].joined_bounds
    assert low < sensitivity < high  # two patients of Quito are missed, which is withheld
    assert high - low == pytest.approx(8 / (150 + 120 + 42))
    assert found["sensitivity"].withheld == ["Quito"]
    assert found["specificity"].joined_bounds == pytest.approx([specificity] * 2)
    assert found["specificity"].joined.value == pytest.approx(specificity)
    ratio = (joined["label"] == "M").sum() / joined["probability_M"].sum()
    assert found["observed_to_expected"].joined_bounds[0] <= ratio <= found["observed_to_expected"].joined_bounds[1]
    assert found["observed_to_expected"].joined.value == pytest.approx(ratio, rel=1e-3)


def test_bounds_of_the_auroc_hold_that_of_the_joined_data(tables, pooled):
    joined = pd.concat(tables.values())
    low, high = pooled[0].figures["auroc"].joined_bounds
    assert low < roc_auc_score(joined["label"] == "M", joined["probability_M"]) < high
    assert high - low < 0.2


def test_figures_by_site_are_the_site_s_own(tables, pooled):
    found = pooled[0].figures
    for site, table in tables.items():
        sensitivity, specificity = rates(table)
        assert found["specificity"].sites[site].value == pytest.approx(specificity)
        metric = found["sensitivity"].sites[site]
        assert metric.low < sensitivity < metric.high
        auroc = roc_auc_score(table["label"] == "M", table["probability_M"])
        assert found["auroc"].sites[site].value == pytest.approx(auroc, abs=6e-4)
    assert found["sensitivity"].sites["Leiden"].value == pytest.approx(rates(tables["Leiden"])[0])


def test_withheld_counts_are_pooled_at_their_worst_and_at_their_best(tables, pooled):
    found = pooled[0].figures["sensitivity"]
    assert list(found.cases) == ["worst", "best"]
    assert found.cases["worst"].pooled.value < found.cases["best"].pooled.value
    counts = [(np.round(rates(table)[0] * n), n) for table, n in zip(tables.values(), (150, 120, 42), strict=True)]
    for case, hits in (("worst", 33), ("best", 41)):
        yes, patients = np.array([*counts[:2], (hits, 42)]).T
        expected = figures.Effects(np.log(yes / (patients - yes)), 1 / yes + 1 / (patients - yes), "logit").pooled()
        assert found.cases[case].pooled.value == pytest.approx(expected.pooled.value)
        assert [row.site for row in found.leave_one_out[case]] == ["Leiden", "Kyoto", "Quito"]
    assert list(pooled[0].figures["specificity"].cases) == ["exact"]
    assert len(pooled[0].figures["specificity"].cases["exact"].prediction) == 2


def test_exact_intervals_are_those_of_clopper_and_pearson():
    from thyroid import metrics

    hits, patients = np.array([0, 3, 72, 10]), np.array([20, 50, 72, 11])
    low, high = figures.exact(hits, patients)
    for number in range(4):
        expected = metrics.clopper_pearson(int(hits[number]), int(patients[number]))
        assert (low[number], high[number]) == pytest.approx(expected)


def test_subgroups_are_those_of_the_joined_data(tables, pooled):
    joined = pd.concat(tables.values())
    rows = {row.group: row for row in pooled[0].subgroups}
    for group, odd in (("F", 1), ("M", 0)):
        part = joined[joined["patient"] % 2 == odd]
        sensitivity, specificity = rates(part)
        assert rows[group].malignant == (part["label"] == "M").sum()
        assert rows[group].sensitivity[0] <= sensitivity <= rows[group].sensitivity[1]
        assert rows[group].specificity[0] <= specificity <= rows[group].specificity[1]


def test_the_report_says_what_a_reader_must_know(pooled):
    found, output = pooled
    html = (output / "report.html").read_text()
    assert html.count("Research use only") >= 2
    assert found.failed == ["Kyoto"]
    for words in (
        "The shortcut audit fails at Kyoto",
        "most of the evidence is not in the nodule",
        "withheld at Quito",
        "at a further hospital",
        "Leiden",
        "Without one site",
    ):
        assert words in html
    assert "data:image/png" in html
    assert (output / "forest.png").read_bytes()[:4] == b"\x89PNG"
    assert PoolRecord.read(output / "pool.json") == found


def test_one_site_gives_its_own_figures_and_two_no_prediction(sites, tmp_path):
    one = pool.pool(sites[:1], sites[0].parent / "keys", tmp_path / "one")
    assert "Only one site" in one.warnings[0]
    only = one.figures["specificity"]
    assert only.cases["exact"].pooled == only.sites["Leiden"]
    assert (only.cases["exact"].i2, only.leave_one_out) == (None, {"exact": []})
    assert one.figures["auroc"].cases["exact"].pooled == one.figures["auroc"].sites["Leiden"]
    two = pool.pool(sites[:2], sites[0].parent / "keys", tmp_path / "two")
    assert "Only two sites" in two.warnings[0]
    assert two.figures["auroc"].cases["exact"].prediction is None
    assert "prediction interval) cannot be given" in (tmp_path / "two" / "report.html").read_text()


def test_a_site_of_one_class_gives_what_it_can(sites, tmp_path):
    few = shared(sites[0].parent, "Graz", simulated(3, 60, 0.5))
    found = pool.pool([*sites, few], few.parent / "keys", tmp_path / "out")
    assert found.figures["sensitivity"].without == ["Graz"]
    assert "Graz" in found.figures["specificity"].sites
    html = (tmp_path / "out" / "report.html").read_text()
    assert "under 10" in html
    assert "fewer than ten patients of a class, they are in no figure" in html


def test_perfectly_separated_sites_are_pooled_with_a_width(tmp_path):
    table = predicted(np.linspace(0.5, 0.9, 30), np.linspace(0.1, 0.3, 30))
    files = [shared(tmp_path, "A", table), shared(tmp_path, "B", simulated(40, 40)), shared(tmp_path, "C", simulated())]
    found = pool.pool(files, tmp_path / "keys", tmp_path / "out").figures["auroc"].cases["exact"].pooled
    assert 0 < found.low < found.value < found.high < 1
    alone = figures.area_effect(1.0, 0.0, 30, 30)
    low, high = expit(alone[0] + np.array([-1.96, 1.96]) * np.sqrt(alone[1]))
    assert 0.8 < low < 0.95 < high < 1  # 30 of 30 have an exact lower bound of .88


def test_a_file_that_is_no_site_file_is_refused(sites, tmp_path):
    for text, message in (
        (b"no JSON", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format": NaN}', "not JSON"),
        (b"[]", "unknown format"),
        (b'{"format": 2}', "unknown format"),
        (b'{"format": true}', "unknown format"),
        (b'{"format": 1}', "field notice"),
        (b" " * 1_000_001, "larger than 1000000 bytes"),
    ):
        sites[0].write_bytes(text)
        refused(sites, message)


def refused(files, message, model=""):
    """The run is refused in one line, which names the first file."""
    with pytest.raises(InputError, match=message) as error:
        check.read(files, files[0].parent / "keys", model)
    assert "\n" not in str(error.value)
    assert str(files[0]) in str(error.value)


def test_one_changed_byte_anywhere_is_refused(sites):
    data = sites[0].read_bytes()
    generator = np.random.default_rng(0)
    places = {*generator.integers(0, len(data), 150).tolist(), *range(data.index(b'"signature"'), len(data), 5)}
    for place in sorted(places):
        changed = bytearray(data)
        changed[place] ^= 1 << int(generator.integers(0, 8))
        sites[0].write_bytes(changed)
        refused(sites[:1], r"\.json: ")
    for changed in (data + b" ", data.replace(b"  ", b"   ", 1), data[:-1], data.replace(b"\n", b"\r\n")):
        sites[0].write_bytes(changed)
        refused(sites[:1], "signature is not that of Leiden.pub")
    sites[0].write_bytes(data)
    assert check.read(sites[:1], sites[0].parent / "keys")


def test_a_signature_in_capitals_or_of_another_key_is_refused(sites):
    data = sites[0].read_text()
    value = content(sites[0]).signature.value
    sites[0].write_text(data.replace(value, value.upper()))
    refused(sites, "signature.value")
    sites[0].write_text(data)
    keys = sites[0].parent / "keys"
    shutil.copy(keys / "Kyoto.pub", keys / "Leiden.pub")
    refused(sites, "signature is not that of Leiden.pub")
    (keys / "Leiden.pub").unlink()
    refused(sites, "no key of the site 'Leiden'; put its public key into --keys as Leiden.pub")


def test_a_folder_of_keys_must_hold_keys(sites):
    keys = sites[0].parent / "keys"
    (keys / "Leiden.pub").write_text("none")
    with pytest.raises(InputError, match=r"Leiden\.pub: not a public Ed25519 key"):
        check.read(sites, keys)
    shutil.copy(sites[0].with_suffix(".pem"), keys / "Leiden.pub")
    with pytest.raises(InputError, match=r"Leiden\.pub: a private key, which only its site may hold; delete it"):
        check.read(sites, keys)
    shutil.copy(sites[0].with_suffix(".pem.pub"), keys / "Leiden.pub")
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")):
        other = keys / f"{make.__name__.strip('<>')}.pub"
        make(other)
        with pytest.raises(InputError, match=rf"{other.name}: not a public Ed25519 key"):
            check.read(sites, keys)
        other.rmdir() if other.is_dir() else other.unlink()
    with pytest.raises(InputError, match="no such folder"):
        check.read(sites, keys / "no")
    with pytest.raises(InputError, match="give the files"):
        check.read([], keys)


def test_another_model_or_threshold_is_refused(sites):
    resigned(sites[0], model="ab" * 32)
    refused(sites, r"about another model \(abababababab\) than most files are about \(3f3f3f3f3f3f\)")
    refused(sites[:1], "than --model asks for", model="cd" * 32)
    steps = content(sites[0]).malignant_steps.to_dict()
    assert POINT.threshold in steps["edges"]
    fields = json.loads(sites[0].read_text().replace("0.4,", "0.41,").replace('"threshold": 0.4\n', ""))
    resigned(sites[0], **(fields | {"model": record().model.sha256, "threshold": 0.41}))
    refused(sites, "another threshold of the same model")
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        pool.pool(sites, sites[0].parent / "keys", sites[0].parent / "out", model="champion")


def test_the_same_site_or_the_same_counts_twice_are_refused(sites, tables):
    keys = sites[0].parent / "keys"
    again = shutil.copy(sites[0], sites[0].with_name("again.json"))
    with pytest.raises(InputError, match=r"again\.json: the same site as Leiden\.json"):
        check.read([*sites, again], keys)
    with pytest.raises(InputError, match=r"Leiden\.json: given twice"):
        check.read([*sites, sites[0]], keys)
    copy = shared(sites[0].parent, "Oslo", tables["Leiden"])
    with pytest.raises(InputError, match=r"Oslo\.json: the same counts as Leiden\.json, under another name"):
        check.read([*sites, copy], keys)


def test_small_sites_may_have_the_same_counts(tmp_path):
    for seed, site in enumerate("AB"):
        low = np.random.default_rng(seed).uniform(0.01, 0.3, 12)
        shared(tmp_path, site, predicted(low + 0.6, low))
    first, second = check.read([tmp_path / "A.json", tmp_path / "B.json"], tmp_path / "keys")
    assert first.malignant_steps == second.malignant_steps
    assert first.benign == second.benign


def test_a_file_that_cannot_be_read_is_refused(sites):
    refused([sites[0].with_name("no.json"), *sites], "No such file")


def test_what_is_no_file_is_refused_and_does_not_hang(sites):
    os.mkfifo(pipe := sites[0].with_name("pipe.json"))
    endless = sites[0].with_name("endless.json")
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless, sites[0].parent):
        with pytest.raises(InputError, match="not a file; give the file that the site sent"):
            check.read([path], sites[0].parent / "keys")
    link = sites[0].with_name("link.json")
    link.symlink_to(sites[0])
    assert check.read([link], sites[0].parent / "keys")


def test_one_key_under_two_names_is_one_site(sites):
    """A site that is pooled twice under two names, with an AUROC that was changed so that it is no copy."""
    fields = json.loads(sites[0].read_bytes())
    fields["auroc"]["value"] = round(fields["auroc"]["value"] + 0.001, 3)
    again = shutil.copy(sites[0], sites[0].with_name("again.json"))
    shutil.copy(sites[0].with_suffix(".pem"), again.with_suffix(".pem"))
    resigned(again, **fields | {"site": "Oslo"})
    shutil.copy(sites[0].parent / "keys" / "Leiden.pub", sites[0].parent / "keys" / "Oslo.pub")
    with pytest.raises(InputError, match=r"again\.json: signed with the key of Leiden\.json"):
        check.read([*sites, again], sites[0].parent / "keys")


def test_an_auroc_that_tells_a_withheld_count_is_refused(tmp_path):
    """Nine of 30 are missed: with fewer, no order of the patients gives an AUROC of .70."""
    path = shared(tmp_path, "A", predicted([*np.full(9, 0.01), *np.full(21, 0.9)], np.linspace(0.05, 0.39, 60)))
    assert content(path).auroc is None
    assert check.read([path], tmp_path / "keys")
    area = {"value": 0.7, "low": 0.5, "high": 0.857, "variance": 0.007}
    refused([resigned(path, auroc=area)], "they tell a withheld count")


def test_a_site_may_leave_out_its_auroc(sites, tmp_path):
    resigned(sites[0], auroc=None, calibration=[], intercept=None, slope=None)
    found = pool.pool(sites, sites[0].parent / "keys", tmp_path / "out").figures
    assert found["auroc"].without == found["observed_to_expected"].without == ["Leiden"]
    assert found["auroc"].cases["exact"].sites == 2


def test_a_small_site_is_named_as_what_widens_the_figures(sites, tmp_path):
    small = shared(sites[0].parent, "Graz", simulated(14, 60, 0.9))
    assert content(small).malignant.called == [1, 13]
    found = pool.pool([*sites, small], small.parent / "keys", tmp_path / "out")
    (warning,) = [text for text in found.warnings if "fewer than twenty patients" in text]
    assert warning.startswith("At Graz a class")
    without = next(row for row in found.figures["sensitivity"].leave_one_out["worst"] if row.site == "Graz")
    assert without.pooled.low > found.figures["sensitivity"].cases["worst"].pooled.low


def test_a_file_in_the_place_of_the_output_is_refused(sites):
    with pytest.raises(InputError, match=r"Kyoto\.json: a file; name a folder for --output"):
        pool.pool(sites[:1], sites[0].parent / "keys", sites[1])


def test_any_name_can_be_drawn(tmp_path, recwarn):
    names = ["St. $\\bad Mary$", "東京 病院", "<b>Graz</b> & Söhne"]
    files = []
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        folder.mkdir()
        table = simulated(seed=number)
        share.write(folder / "a.json", folder / "key", record(name), table, groups=grouped(table), point=POINT)
        (tmp_path / "keys").mkdir(exist_ok=True)
        shutil.copy(folder / "key.pub", tmp_path / "keys" / signature.file_name(name))
        files.append(folder / "a.json")
    pool.pool(files, tmp_path / "keys", tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;Graz&lt;/b&gt; &amp; Söhne" in html
    assert "<b>Graz" not in html
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_key_whose_name_is_decomposed_is_found(tmp_path):
    """macOS writes the u of Zürich and its two dots apart."""
    path = shared(tmp_path, "Zürich", simulated())
    key = tmp_path / "keys" / "Zürich.pub"
    key.rename(key.with_name(unicodedata.normalize("NFD", key.name)))
    assert check.read([path], tmp_path / "keys")


LEIDEN_CHANGES = {
    "small side": (lambda f: f["malignant"].update(patients=9, called=[9, 9]), "fewer than 10 patients"),
    "small number of mistakes": (lambda f: f["malignant"].update(called=[147, 147]), "fewer than 10 patients"),
    "a narrow range": (lambda f: f["malignant"].update(called=[142, 149]), "fewer than 10 patients"),
    "more called than there are": (lambda f: f["malignant"].update(called=[0, 999]), "not among the 150"),
    "a range upside down": (lambda f: f["malignant"].update(called=[100, 0]), "not among the 150"),
    "a small bin": (lambda f: _move(f["malignant_steps"]["patients"], 9), "a bin of fewer than 10"),
    "a negative count": (lambda f: f["malignant_steps"]["patients"].__setitem__(0, -10), "malignant_steps.patients.0"),
    "a huge count": (lambda f: f["malignant"].update(patients=10**8), "malignant.patients"),
    "a count as text": (lambda f: f["malignant"].update(patients="150"), "malignant.patients"),
    "half a patient": (lambda f: f["malignant"].update(patients=150.5), "malignant.patients"),
    "bins that do not add up": (
        lambda f: f["benign_steps"]["patients"].__setitem__(0, f["benign_steps"]["patients"][0] + 1),
        "patients instead of 200",
    ),
    "bins that do not fit the threshold": (
        lambda f: f["benign"].update(called=[100, 100]),
        "at or above the threshold",
    ),
    "withheld, but an edge tells": (lambda f: f["malignant"].update(called=[0, 150]), "the threshold must be an edge"),
    "falling edges": (lambda f: f["benign_steps"]["edges"].__setitem__(1, 0.0), "edges must rise"),
    "a bin without an edge": (lambda f: f["benign_steps"]["edges"].pop(1), "edges must rise"),
    "steps without counts": (lambda f: f.update(malignant=None), "both be there"),
    "no counts": (
        lambda f: f.update(malignant=None, benign=None, malignant_steps=None, benign_steps=None),
        "no counts",
    ),
    "figures without a side": (lambda f: f.update(malignant=None, malignant_steps=None), "figures of both sides"),
    "another AUROC": (lambda f: f["auroc"].update(value=0.5, low=0.4), "not what the steps"),
    "an AUROC outside of its interval": (lambda f: f["auroc"].update(low=0.99), "not what the steps"),
    "a name that cannot be printed": (lambda f: f.update(site="Lei\u200bden"), "control or invisible characters"),
    "a calibration of other patients": (lambda f: f["calibration"][0].update(malignant=0), "its counts are not"),
    "a calibration of other edges": (lambda f: f["calibration"].pop(), "its edges must be"),
    "too large a sum": (lambda f: f["calibration"][0].update(probability=300.0), "not within its bin"),
    "a small group": (lambda f: _shift(f, 0, 141), "fewer than 10 patients"),
    "groups that do not add up": (
        lambda f: f["subgroups"][0]["groups"][0]["benign"].update(patients=150, called=[0, 150]),
        "add up",
    ),
    "called patients that do not add up": (
        lambda f: [group["malignant"].update(called=[0, 0]) for group in f["subgroups"][0]["groups"]],
        "called patients do not add up",
    ),
    "a group twice": (lambda f: f["subgroups"][0]["groups"][0].update(group="M"), "a group is there twice"),
    "a column twice": (lambda f: f["subgroups"].append(f["subgroups"][0]), "a column is there twice"),
    "an unknown field": (lambda f: f.update(patient="Ann"), "field patient"),
    "an endless number": (lambda f: f["slope"].update(value=1e308), "slope.value"),
}


def _move(bins, left):
    """Leave `left` patients in the first bin, and the others in the second."""
    bins[1] += bins[0] - left
    bins[0] = left


def _shift(fields, group, patients):
    """Give the first group this many malignant patients, and the second the others."""
    first, second = fields["subgroups"][0]["groups"]
    first["malignant"].update(patients=patients, called=[0, patients])
    second["malignant"].update(patients=150 - patients, called=[0, 150 - patients])


@pytest.mark.parametrize("name", LEIDEN_CHANGES)
def test_validly_signed_counts_that_tell_patients_or_contradict_are_refused(sites, name):
    change, message = LEIDEN_CHANGES[name]
    fields = json.loads(sites[0].read_bytes())
    change(fields)
    resigned(sites[0], **fields)
    refused(sites, message)


def test_a_withheld_count_that_follows_from_the_other_groups_is_refused(sites):
    fields = json.loads(sites[0].read_bytes())
    called = fields["malignant"]["called"][0]
    groups = fields["subgroups"][0]["groups"]
    groups[0]["malignant"].update(patients=100, called=[91, 99])
    groups[1]["malignant"].update(patients=50, called=[called - 95, called - 95])
    resigned(sites[0], **fields)
    refused(sites, "follows from the others")


def test_every_bad_file_gets_its_line(sites, capsys):
    for path in sites[:2]:
        path.write_text("{}")
    arguments = ["--keys", str(sites[0].parent / "keys"), "--output", str(sites[0].parent / "out"), *map(str, sites)]
    assert command.main(arguments) == 2
    told = capsys.readouterr()
    lines = [line for line in told.out.splitlines() if "unknown format" in line]
    assert [line.partition(":")[0] for line in lines] == [str(path) for path in sites[:2]]
    assert told.err == "error: 2 of 3 files are refused, as listed above; nothing was pooled\n"
    assert not (sites[0].parent / "out").exists()


def test_the_command_pools(sites, capsys):
    output = sites[0].parent / "out"
    model = content(sites[0]).model
    arguments = [*map(str, sites), "--keys", str(sites[0].parent / "keys"), "--output", str(output), "--model", model]
    assert command.main(arguments) == 0
    assert sorted(path.name for path in output.iterdir()) == ["forest.png", "pool.json", "report.html"]
    assert "esearch use only" in capsys.readouterr().out


def test_without_statsmodels_the_command_says_what_to_do(sites):
    code = (
        "import sys; sys.modules['statsmodels'] = None; import thyroid.validate.__main__; "
        "from thyroid.pool import main; sys.exit(main(['--keys', 'k', '--output', 'o', 'a.json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: statsmodels is not installed here; `make pool`")


def test_many_sites_are_drawn_without_their_names(sites, tmp_path):
    fields = json.loads(sites[0].read_bytes())
    fields.pop("signature")
    files = []
    for number in range(70):
        steps = fields["benign_steps"]
        more = {
            "benign": fields["benign"] | {"patients": 200 + number},
            "benign_steps": steps | {"patients": [steps["patients"][0] + number, *steps["patients"][1:]]},
            "calibration": [dict(one) for one in fields["calibration"]],
        }
        more["calibration"][0]["patients"] += number
        histograms = [Steps(**one) for one in (fields["malignant_steps"], more["benign_steps"])]
        area = round(sum(areas.bounds(histograms[:1], histograms[1:])) / 2, 3)
        more["auroc"] = fields["auroc"] | {"value": area, "low": area - 0.1, "high": area + 0.1}
        path = tmp_path / f"{number}.json"
        key, _ = signature.private_key(tmp_path / f"{number}.pem")
        path.write_bytes(signature.sign(fields | more | {"site": f"S{number}", "subgroups": []}, key))
        shutil.copy(tmp_path / f"{number}.pem.pub", sites[0].parent / "keys" / f"S{number}.pub")
        files.append(path)
    found = pool.pool(files, sites[0].parent / "keys", tmp_path / "out")
    assert len(found.figures["specificity"].leave_one_out["exact"]) == 70
    assert "pool.json has the figures without each" in (tmp_path / "out" / "report.html").read_text()
    assert "S9 and 60 more." in next(text for text in found.warnings if "not run" in text)


def test_bounds_of_an_auroc_are_exact_where_bins_do_not_overlap():
    low, high = Steps(edges=[0.0, 0.4, 1.0], patients=[10, 30]), Steps(edges=[0.0, 0.4, 1.0], patients=[20, 0])
    assert areas.bounds([low], [high]) == (30 / 40, 1.0)
    assert areas.bounds([Steps(edges=[0.0, 0.4, 1.0], patients=[0, 30])], [high]) == (1.0, 1.0)


def test_phantoms_and_patients_that_could_not_be_compared_are_said_first(tmp_path):
    """A pooled figure must not hide what a site's own report says on its first page."""
    told = _record_scans(synthetic=3, unchecked="the key is another one")
    drawn, plain = (
        shared(tmp_path, "Drawn", simulated(seed=1), scans=told),
        shared(tmp_path, "Plain", simulated(seed=2)),
    )
    done = pool.pool([drawn, plain], tmp_path / "keys", tmp_path / "out")
    assert any("Scans of Drawn are synthetic phantoms" in one for one in done.warnings)
    assert any(one.startswith("Drawn could not compare its patients") for one in done.warnings)
    assert not any("Plain" in one for one in done.warnings if "phantoms" in one or "compare" in one)


def _record_scans(**changes):
    return record().scans.model_copy(update=changes)
