import re
import shutil

import numpy as np
import pandas as pd
import pytest

from thyroid import crop, inputs, registry, tables, train
from thyroid.backend import keras
from thyroid.errors import InputError


def test_writes_checkpoint_history_and_facts(trained):
    folder = trained["VGG16", "cropped"]
    facts = train.read(folder)
    assert re.fullmatch(r"VGG16-\d{3}-\d+\.\d{4}-[01]\.\d{4}\.keras", facts["checkpoint"])
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [facts["checkpoint"], "history.csv", "history.png", "train.json"]
    )
    history = pd.read_csv(folder / "history.csv")
    assert set(history["phase"]) == {"head", "finetune"}
    assert {"epoch", "loss", "accuracy", "auroc", "val_loss", "val_accuracy", "val_auroc"} <= set(history.columns)
    assert facts["weights"] == "none"


def test_checkpoint_gives_the_validation_figures_it_is_named_after(trained, cropped):
    for folder in trained.values():
        facts = train.read(folder)
        model = registry.load_keras(folder / facts["checkpoint"])
        table = crop.examples(cropped, facts["train_domain"], "validation")
        batch = next(iter(inputs.pixels(table["file"].tolist(), 32, folder / "none").batch(99)))
        probability = model.predict(batch, verbose=0)
        truth = (table["label"] == "M").to_numpy().astype(int)
        loss = -np.log(probability[np.arange(len(truth)), truth]).mean()
        assert loss == pytest.approx(facts["validation"]["loss"], abs=2e-3)
        assert (probability.argmax(axis=1) == truth).mean() == pytest.approx(facts["validation"]["accuracy"])


def test_says_that_it_starts_from_nothing(cropped, tmp_path, capsys):
    train.train(cropped, tmp_path / "out", "VGG19", weights=str(tmp_path), image_size=32, epochs=0)
    assert f"VGG19: no file for it in {tmp_path}; starts from random weights" in capsys.readouterr().out


def test_pretrained_weights_and_head_only(cropped, tmp_path, vgg16_weights):
    facts = train.train(cropped, tmp_path, "vgg16", weights=str(vgg16_weights), image_size=32, epochs=0).facts
    assert facts["weights"] == vgg16_weights.name
    assert facts["epoch"] == 0
    model = registry.load_keras(tmp_path / facts["checkpoint"])
    fresh = keras.applications.VGG16(include_top=False, weights=str(vgg16_weights), input_shape=(32, 32, 3))
    frozen = model.get_layer("body").get_layer("block5_conv3").get_weights()[0]
    np.testing.assert_array_equal(frozen, fresh.get_layer("block5_conv3").get_weights()[0])


def test_same_seed_same_model(cropped, tmp_path):
    facts = [
        train.train(cropped, tmp_path / n, "ResNet50", weights="none", image_size=32, epochs=0, seed=3).facts
        for n in ("one", "two")
    ]
    assert facts[0]["checkpoint"] == facts[1]["checkpoint"]


def test_auroc_metric_is_that_of_the_malignant_column():
    rng = np.random.default_rng(0)
    truth, score = rng.random(300) < 0.3, rng.random(300)
    metric = train.Auroc(num_thresholds=1000)
    metric.update_state(
        np.stack([~truth, truth], 1).astype("float32"), np.stack([1 - score, score], 1).astype("float32")
    )
    from sklearn.metrics import roc_auc_score

    assert float(metric.result()) == pytest.approx(roc_auc_score(truth, score), abs=2e-3)


def test_unknown_backbone_is_one_line(cropped, tmp_path, capsys):
    arguments = ["--data", str(cropped), "--output", str(tmp_path), "--backbone", "LeNet"]
    assert train.main(arguments) == 2
    assert "backbone 'LeNet' is unknown" in capsys.readouterr().err


def test_missing_images_are_named(cropped, tmp_path):
    copy = shutil.copytree(cropped, tmp_path / "data")
    gone = next(iter(crop.examples(copy, "cropped", "train")["file"]))
    (tmp_path / "data" / gone).unlink()
    with pytest.raises(InputError, match=f"1 images of the data version are missing, the first is {gone}"):
        train.train(copy, tmp_path / "out", "VGG16", weights="none", image_size=32)


def test_a_validation_part_with_one_class_fails_first(cropped, tmp_path):
    copy = shutil.copytree(cropped, tmp_path / "data")
    scans, regions, facts = tables.read(copy)
    scans.loc[(scans["split"] == "validation") & (scans["label"] == "M"), "split"] = "train"
    tables.write(copy, scans, regions, facts)
    with pytest.raises(InputError, match="no image of class M in the validation split"):
        train.train(copy, tmp_path / "out", "VGG16", weights="none", image_size=32)


def test_not_a_training(tmp_path):
    with pytest.raises(InputError, match=r"train\.json is missing"):
        train.read(tmp_path)
