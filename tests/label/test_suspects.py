"""Suspect labels: the method on scores whose errors are known, its files and its command, and flipped phantoms."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.support.records import train_record
from thyroid.data import splits
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import phantom
from thyroid.label import suspects
from thyroid.label.frames import Frame

FLIPPED = 0.05


def scores(count: int = 400, wrong: int = 20, separation: float = 3.0, share: float = 0.5):
    """Labels of which some are flipped, scores of two Gaussians, and which labels are flipped."""
    rng = np.random.default_rng(0)
    true = (rng.random(count) < share).astype(int)
    malignant = 1 / (1 + np.exp(-(separation * (true - 0.5) + rng.normal(0, 0.7, count)) * 2))
    flipped = np.zeros(count, bool)
    flipped[rng.choice(count, wrong, replace=False)] = True
    return np.where(flipped, 1 - true, true), np.stack([1 - malignant, malignant], axis=1), flipped


@pytest.mark.parametrize("share", [0.5, 0.15])
def test_flipped_labels_are_flagged_and_rank_first(share):
    label, probability, flipped = scores(share=share)
    found = suspects.find(label, probability)
    flagged = found.index[found["flagged"]]
    assert sorted(found.index) == list(range(len(label)))
    assert found["flagged"].tolist() == sorted(found["flagged"], reverse=True)
    assert flipped[flagged].mean() >= 0.8
    assert flipped[flagged].sum() >= 0.8 * flipped.sum()
    assert flipped[found.index[:10]].all()
    assert (found["suggested"] == 1 - found["label"]).all()
    assert found["self_confidence"].to_numpy() == pytest.approx(probability[found.index, found["label"]])
    assert found["margin"].to_numpy() == pytest.approx(1 - 2 * found["self_confidence"].to_numpy())


def test_nothing_is_flagged_where_predictions_and_labels_agree():
    label, probability, _ = scores(wrong=0, separation=12)
    assert not suspects.find(label, probability)["flagged"].any()


def test_predictions_that_favour_a_class_do_not_flag_the_other_one():
    """Where the rare class never reaches one half, its mean probability is the threshold, not one half."""
    label = np.array([0] * 90 + [1] * 10)
    malignant = np.where(label == 1, 0.3, 0.05)
    malignant[0] = 0.4
    found = suspects.find(label, np.stack([1 - malignant, malignant], axis=1))
    assert found.index[found["flagged"]].tolist() == [0]


def test_several_classes_suggest_the_confident_one():
    true = np.arange(90) % 3
    probability = np.eye(3)[true] * 0.7 + 0.1
    label = true.copy()
    label[[3, 4]] = [2, 0]
    found = suspects.find(label, probability)
    flagged = found[found["flagged"]]
    assert sorted(flagged.index) == [3, 4]
    assert flagged["suggested"].loc[[3, 4]].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("label", "probability"),
    [
        ([0, 1], [[0.5, 0.5]]),
        ([0], [[1.0]]),
        ([2], [[0.5, 0.5]]),
        ([-1], [[0.5, 0.5]]),
        ([0], [[np.nan, 0.5]]),
        ([0], [[1.5, -0.5]]),
    ],
)
def test_what_are_no_predictions_is_refused(label, probability):
    with pytest.raises(ValueError, match=r"expected|probability|label"):
        suspects.find(label, probability)


def test_a_class_without_a_scan_is_never_suggested():
    label, probability, _ = scores()
    padded = np.column_stack([probability * 0.4, np.full(len(label), 0.6)])
    assert not (suspects.find(label, padded)["suggested"] == 2).any()
    assert len(suspects.find(np.zeros(0, int), np.zeros((0, 2)))) == 0


def signs(drawn: phantom.Phantom) -> list[float]:
    """What can be measured of a phantom's nodule: shape, echo from the centre outwards, margin, and specks."""
    x, y, width, height = drawn.roi
    grey = cv2.GaussianBlur(drawn.image.mean(axis=2), (0, 0), 2)
    rows, columns = np.mgrid[0 : grey.shape[0], 0 : grey.shape[1]]
    down, right = (rows - y - height / 2) / height, (columns - x - width / 2) / width
    distance, angle = 2 * np.hypot(down, right), np.arctan2(down, right)
    rings = [grey[(distance >= low) & (distance < low + 0.15)].mean() for low in np.arange(0, 1.35, 0.15)]
    margin, sector = (distance >= 0.75) & (distance < 0.95), np.floor((angle + np.pi) / (np.pi / 8))
    edge = [grey[margin & (sector == number)].mean() for number in range(16)]
    body = drawn.image[..., 0][distance < 0.75].astype(float)
    specks = [np.quantile(body, 0.99) - np.quantile(body, 0.6), (body > 220).mean(), body.std()]
    return [height / width, *rings, np.std(edge), *specks]


@pytest.mark.slow
def test_flipped_labels_of_phantoms_are_found():
    """With 5 % of 240 labels flipped, half of what is flagged is flipped, and 7 of 10 flips are flagged.

    The predictions are those of a logistic regression on measured signs, out of fold, with an AUROC of about .94; they
    are learnt from the flipped labels. The figures are means of 20 draws; a random order has a precision of .05.
    """
    count, wrong = 240, round(240 * FLIPPED)
    true = (np.arange(count) % 5 >= 3).astype(int)
    features = np.array([signs(phantom.draw("BM"[label], patient, 1, seed=5)) for patient, label in enumerate(true, 1)])
    precision, recall, top = [], [], []
    for seed in range(20):
        flipped = np.isin(np.arange(count), np.random.default_rng(seed).choice(count, wrong, replace=False))
        given = np.where(flipped, 1 - true, true)
        fold, probability = splits.fold_of_rows(given, np.arange(count), 5, seed), np.empty((count, 2))
        for number in range(5):
            head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000))
            head.fit(features[fold != number], given[fold != number])
            probability[fold == number] = head.predict_proba(features[fold == number])
        found = suspects.find(given, probability)
        hits, flagged = flipped[found.index], int(found["flagged"].sum())
        precision.append(hits[:flagged].mean())
        recall.append(hits[:flagged].sum() / wrong)
        top.append(hits[:wrong].mean())
    assert np.mean(precision) >= 0.4
    assert np.mean(recall) >= 0.6
    assert np.mean(top) >= 0.45


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_a_real_training_with_folds_ranks_every_development_scan(cropped, tmp_path):
    from thyroid.train import train
    from thyroid.train.options import TrainOptions

    options = TrainOptions(weights="none", image_size=32, epochs=0, folds=2)
    train.train(cropped, tmp_path / "model", "Toy", "cropped", options)
    found, data = suspects.of_training(tmp_path / "model", cropped), DataVersion.read(cropped)
    development = data.used.query("split != 'test'")
    assert sorted(found["path"]) == sorted(Path(path).name for path in development["path"])
    assert found["label"].tolist() == [path[0] for path in found["path"]]
    assert len(suspects.of_training(tmp_path / "model", cropped, "normal")) == len(found)


@pytest.fixture
def folded(cropped, tmp_path):
    """A training with made-up out-of-fold predictions, in which the first scan's label is contradicted."""
    folder, data = tmp_path / "model", DataVersion.read(cropped)
    folder.mkdir()
    train_record(data_digest=data.digest, folds=2).write(folder / "train.json")
    rows = data.examples("cropped").query("split != 'test'")
    rows.assign(file=rows["name"], part="train")[["file", "part"]].to_csv(folder / "parts.csv", index=False)
    malignant = np.where(rows["label"] == "M", 0.9, 0.1)
    malignant[rows["path"] == rows["path"].iloc[0]] = 0.05 if rows["label"].iloc[0] == "M" else 0.95
    table = rows.assign(file=rows["name"], domain="cropped", fold=1, probability_B=1 - malignant)
    table = table.assign(probability_M=malignant).drop(columns=["name", "path", "split", "sha256"])
    table.to_parquet(folder / "folds.parquet", index=False)
    return folder, Path(rows["path"].iloc[0]), len(set(rows["path"]))


def test_a_training_with_folds_gives_suspects_by_path(folded, cropped, tmp_path):
    folder, path, scans = folded
    output = tmp_path / "new" / "suspects.csv"
    given = ["--model", str(folder), "--data", str(cropped), "--output", str(output)]
    assert suspects.main(given) == 0
    (name, found), *_ = suspects.read(output).items()
    assert name == found.path == path.relative_to(DataVersion.read(cropped).facts.source).as_posix()
    assert {found.label, found.suggested} == {"B", "M"}
    assert found.label == path.name[0]
    assert (found.self_confidence, found.margin) == (0.05, 0.9)
    assert suspects.main([*given, "--most", "1000"]) == 0
    assert len(suspects.read(output)) == scans


def test_the_command_explains_what_is_missing(folded, cropped, tmp_path, capsys):
    folder, output = folded[0], str(tmp_path / "suspects.csv")
    with pytest.raises(InputError, match=r"normal"):
        suspects.of_training(folder, cropped, "normal")
    with pytest.raises(InputError, match=r"train\.json"):
        suspects.of_training(tmp_path, cropped)
    table = pd.read_parquet(folder / "folds.parquet")
    table.assign(file="gone").to_parquet(folder / "folds.parquet")
    with pytest.raises(InputError, match=r"folds\.parquet"):
        suspects.of_training(folder, cropped)
    (folder / "folds.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"folds\.parquet"):
        suspects.of_training(folder, cropped)
    (folder / "folds.parquet").unlink()
    with pytest.raises(InputError, match=r"--folds"):
        suspects.of_training(folder, cropped)
    train_record(data_digest="other").write(folder / "train.json")
    with pytest.raises(InputError, match=r"another data version"):
        suspects.of_training(folder, cropped)
    capsys.readouterr()
    assert suspects.main(["--model", str(folder), "--data", str(cropped), "--output", output, "--most", "-1"]) == 2
    assert not Path(output).exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


HEADER = ",".join(suspects.COLUMNS)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("path,label\n", "suggested"),
        (f"{HEADER}\na.jpg,B,M,high,.5\n", "line 2"),
        (f"{HEADER}\na.jpg,B,M,.1,nan\n", "line 2"),
        (f"{HEADER}\na.jpg,B,M,.1,7\n", "line 2"),
        (f"{HEADER}\n,B,M,.1,.5\n", "line 2"),
        (f"{HEADER}\na.jpg,B,M,.1,.5\na.jpg,B,M,.1,.5\n", "line 3"),
        (f"{HEADER}\na.jpg,B,M,.1,.5,.6\n", "line 2"),
        ("", "header"),
    ],
)
def test_a_damaged_table_is_refused_by_line(tmp_path, text, named):
    file = tmp_path / "suspects.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"suspects\.csv.*{named}"):
        suspects.read(file)


def test_a_frame_of_a_dicom_file_is_known_by_its_pseudonym():
    frames = [
        Frame(path, path, 9, 9, None, "", path, number, pseudonym)
        for path, number, pseudonym in (
            ("a/x.jpg", None, ""),
            ("a/y.dcm#2", 2, "B_001-0002-2.dcm"),
            ("z.dcm#1", 1, "p"),
        )
    ]
    found = [suspects.Suspect(path, "B", "M", 0.1, 0.8) for path in ("B_001-0002-2.dcm", "gone.jpg", "a/x.jpg", "a/p")]
    matched = suspects.match({one.path: one for one in found}, frames)
    assert list(matched) == ["a/y.dcm#2", "a/x.jpg"]
    assert matched["a/y.dcm#2"] == found[0]


def test_no_table(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        suspects.read(tmp_path / "suspects.csv")
