"""Settings files, and the head that they are for."""

import hashlib
import json

import numpy as np
import pytest

from thyroid.crop import CropOptions
from thyroid.data.crops import Cut
from thyroid.errors import InputError
from thyroid.imaging import geometry
from thyroid.records.record import Record
from thyroid.records.settings import Settings
from thyroid.train import head, settings


def test_a_file_gives_back_what_was_written(tmp_path, place):
    chosen = Settings(head_rate=0.01, tap="block4_pool", margin=0.3, unfrozen=0, backbone="VGG16")
    chosen.write(tmp_path / "settings.json", auroc=0.7)
    assert json.loads((tmp_path / "settings.json").read_text())["found"] == {"auroc": 0.7}
    assert settings.read(tmp_path / "settings.json") == chosen
    assert settings.resolve("two-phase", str(tmp_path / "settings.json")) == ("frozen", chosen)
    assert settings.resolve("warm") == ("warm", Settings())
    with pytest.raises(InputError, match=r"settings\.json"):
        settings.resolve(str(tmp_path / "settings.json"))
    from thyroid import storage

    storage.at(place).write("settings.json", (tmp_path / "settings.json").read_bytes())
    assert settings.read(storage.below(place, "settings.json")) == chosen


def test_what_a_file_leaves_out_keeps_its_value(tmp_path):
    (tmp_path / "some.json").write_text('{"margin": 0}')
    assert settings.read(tmp_path / "some.json") == Settings(margin=0.0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "expected an object"),
        ("{", "not JSON"),
        ('{"margins": 0.1}', "'margins' is unknown"),
        ('{"margin": "wide"}', "margin: 'wide' is not a number"),
        ('{"margin": true}', "margin: True"),
        ('{"margin": -0.1}', "margin: -0.1 is not between 0 and 2"),
        ('{"head_rate": NaN}', "head_rate"),
        ('{"image_size": 64.5}', "image_size: 64.5 is not a whole number"),
        ('{"unfrozen": null}', "unfrozen: None"),
        ('{"class_weight": "heavy"}', "class_weight: 'heavy' is unknown"),
    ],
)
def test_a_bad_file_is_told_by_file_and_field(tmp_path, content, told):
    file = tmp_path / "settings.json"
    file.write_text(content)
    with pytest.raises(InputError, match=told) as raised:
        settings.read(file)
    assert str(file) in str(raised.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"settings\.json"):
        settings.read(tmp_path / "settings.json")


def test_a_tap_belongs_to_its_backbone(capsys):
    chosen = Settings(tap="block4_pool", backbone="VGG16")
    assert chosen.of("VGG16") is chosen
    assert chosen.of("ResNet50") == chosen.replace(tap="")
    assert "block4_pool" in capsys.readouterr().out
    assert chosen.replace(backbone="").of("ResNet50").tap == "block4_pool"


def examples(count: int, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, count)
    x = rng.normal(size=(count, 6)).astype(np.float32) * 3 + 1
    x[:, 0] += truth * 2
    return x, np.eye(classes, dtype=np.float32)[truth]


def test_the_head_is_what_keras_fits(monkeypatch):
    """One batch an epoch, so that the order does not matter, and no early end; from the same first weights."""
    from thyroid.model.backend import keras

    x, y = examples(90, classes=3)
    chosen = Settings(head_rate=0.02, head_penalty=0.05, label_smoothing=0.1)
    train, validation = np.arange(60), np.arange(60, 90)
    monkeypatch.setattr(head, "EPOCHS", 25)
    monkeypatch.setattr(head, "PATIENCE", 99)
    seen = []
    head.fit([x], y, train, validation, chosen, seed=3, watch=lambda epoch, now: seen.append(now))
    mean, deviation = x[train].mean(axis=0), x[train].std(axis=0)
    scale = deviation + 1e-3 * deviation.mean() + 1e-12
    dense = keras.layers.Dense(3, activation="softmax", kernel_regularizer=keras.regularizers.L2(chosen.head_penalty))
    model = keras.Sequential([keras.Input((6,)), dense])
    limit = np.sqrt(6 / 9)
    dense.set_weights([np.random.default_rng(3).uniform(-limit, limit, (6, 3)), np.zeros(3)])
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=chosen.label_smoothing)
    model.compile(keras.optimizers.Adam(chosen.head_rate), loss)
    weights = dict(enumerate(head.class_weights(y[train], "balanced")))
    model.fit((x[train] - mean) / scale, y[train], batch_size=60, epochs=25, class_weight=weights, verbose=0)
    expected = model.predict((x - mean) / scale, verbose=0)
    assert seen[-1](x) == pytest.approx(expected, abs=1e-4)


def test_the_best_epoch_is_kept_and_the_seed_decides():
    x, y = examples(200)
    seen = []
    parts = (np.arange(120), np.arange(120, 160))
    chosen = Settings(head_rate=0.2, head_penalty=0)
    fitted = head.fit([x, x + 0.1], y, *parts, chosen, seed=0, watch=lambda epoch, now: seen.append(now))
    losses = [head.cross_entropy(one(x[parts[1]]), y[parts[1]]) for one in seen]
    assert fitted.epoch == int(np.argmin(losses)) + 1
    assert len(seen) == min(head.EPOCHS, fitted.epoch + head.PATIENCE)
    assert fitted(x).sum(axis=1) == pytest.approx(1, abs=1e-5)
    again = head.fit([x, x + 0.1], y, *parts, chosen, seed=0)
    assert (again.kernel == fitted.kernel).all()
    assert (head.fit([x, x + 0.1], y, *parts, chosen, seed=1).kernel != fitted.kernel).any()


def test_class_weights():
    labels = np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]
    assert head.class_weights(labels, "balanced") == pytest.approx([2, 2 / 3])
    assert head.class_weights(labels, "sqrt") == pytest.approx([2**0.5, (2 / 3) ** 0.5])
    assert head.class_weights(labels, "none") == pytest.approx([1, 1])


def test_every_number_has_limits():
    fields = Settings.model_json_schema()["properties"]
    assert {name for name, field in fields.items() if {"minimum", "maximum"} <= field.keys()} == (
        fields.keys() - {"class_weight", "tap", "backbone"}
    )


def test_the_default_margin_is_that_of_the_crops():
    assert Settings().margin == geometry.MARGIN == CropOptions().margin == Cut().margin


def test_the_margin_of_a_run(tmp_path):
    file = tmp_path / "settings.json"
    assert settings.crop_margin(settings.UNSET) == geometry.MARGIN
    assert settings.crop_margin(0.0) == 0
    file.write_text('{"margin": 0.35}')
    assert settings.crop_margin(settings.UNSET, file) == settings.crop_margin(0.35, file) == 0.35
    file.write_text('{"head_rate": 0.01}')
    assert settings.named_margin(file) is None
    assert settings.crop_margin(settings.UNSET, file) == geometry.MARGIN
    assert settings.crop_margin(0.3, file) == 0.3, "a margin that a file does not name is no contradiction"


@pytest.mark.parametrize("margin", [-0.5, 2.01, float("nan"), float("inf")])
def test_a_margin_out_of_range(margin):
    with pytest.raises(InputError, match=r"^margin"):
        settings.crop_margin(margin)


def test_a_margin_that_contradicts_the_settings(tmp_path):
    (tmp_path / "settings.json").write_text('{"margin": 0.15}')
    with pytest.raises(InputError, match=r"\b0\.5\b.*settings\.json\b.*\b0\.15\b"):
        settings.crop_margin(0.5, tmp_path / "settings.json")


def test_the_name_of_a_trials_work_folder_does_not_change():
    """Searches that were interrupted resume from it. Whole numbers become floats where the setting is a float."""
    settings = Settings(margin=0, unfrozen=0, tap="x", head_rate=1)
    content = json.dumps(settings.to_dict()).encode()
    assert hashlib.sha256(content).hexdigest()[:16] == "db677bdaff5ce19a"


class Held(Record):
    settings: Settings


def test_settings_in_a_record_are_complete_and_checked():
    with pytest.raises(InputError, match=r"^train\.json.*\bmargin\b.*\b7\b.*\b2$"):
        Held.parse({"settings": {"margin": 7}}, "train.json")
    assert Held.parse({"settings": {"margin": 1}}, "x").to_dict()["settings"] == Settings(margin=1.0).to_dict()
    assert len(Settings().to_dict()) == len(Settings.model_fields)
