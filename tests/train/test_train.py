import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support import toy_artefact, toys
from thyroid.crop import CropOptions
from thyroid.data import tables
from thyroid.data.classes import BINARY
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import performance
from thyroid.model import backbones, backend, inputs
from thyroid.model.artefact import MODEL, SCANS, Artefact, load_keras
from thyroid.model.backend import keras
from thyroid.records.data import DataRecord
from thyroid.records.model import ModelDescription
from thyroid.records.settings import Settings
from thyroid.registry.registry import Registry
from thyroid.train import cross_validation, deck, record, train, twophase, warm_start
from thyroid.train.__main__ import main
from thyroid.train.cross_validation import Development
from thyroid.train.options import TrainOptions

pytestmark = pytest.mark.usefixtures("toy")


def test_writes_checkpoint_history_and_facts(trained):
    folder = trained["VGG16", "cropped"]
    facts = record.read(folder)
    assert re.fullmatch(r"VGG16-\d{3}-\d+\.\d{4}-[01]\.\d{4}\.keras", facts.checkpoint)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [
            facts.checkpoint,
            "network.pb",
            "history.csv",
            "history.png",
            "parts.csv",
            "tensorboard",
            *("diagnosis.json", "train.json"),
        ]
    )
    assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))
    history = pd.read_csv(folder / "history.csv")
    assert set(history["phase"]) == {"head", "finetune"}
    figures = {"epoch", "loss", "accuracy", "auroc", "val_loss", "val_accuracy", "val_auroc"}
    assert figures | {"seconds", "elapsed", "images_per_second", "memory_mb"} == set(history.columns) - {
        "phase",
        "categorical_crossentropy",
        "val_categorical_crossentropy",
    }
    assert history["elapsed"].is_monotonic_increasing
    assert (history[["images_per_second", "memory_mb"]] > 0).all(axis=None)
    assert facts.weights == "none"
    assert facts.jitter == CropOptions.jitter
    assert record.read(trained["VGG16", "normal"]).jitter == 0


def test_checkpoint_gives_the_validation_figures_it_is_named_after(trained, cropped):
    for folder in trained.values():
        facts = record.read(folder)
        model = load_keras(folder / facts.checkpoint)
        table = DataVersion.read(cropped).examples(facts.train_domain, "validation")
        probability = inputs.predict(model, inputs.decode(table, 32))
        truth = (table["label"] == "M").to_numpy().astype(int)
        loss = -np.log(probability[np.arange(len(truth)), truth]).mean()
        assert loss == pytest.approx(facts.validation.loss, abs=1e-4)
        assert (probability.argmax(axis=1) == truth).mean() == pytest.approx(facts.validation.accuracy)


def test_says_that_it_starts_from_nothing_and_that_a_batch_is_larger_than_the_set(cropped, tmp_path, capsys):
    run(cropped, tmp_path / "out", weights=str(tmp_path), batch_size=1000, epochs=0)
    printed = capsys.readouterr().out
    assert f"Toy: no file for it in {tmp_path}; starts from random weights" in printed
    assert re.search(r"batch size 1000 .* one step of \d+ images", printed)


def test_pretrained_weights_and_head_only(cropped, tmp_path, vgg16_weights):
    options = TrainOptions(weights=str(vgg16_weights), image_size=32, epochs=0)
    facts = train.train(cropped, tmp_path, "vgg16", options=options).record
    assert facts.weights == vgg16_weights.name
    assert facts.epoch == 0
    model = load_keras(tmp_path / facts.checkpoint)
    fresh = keras.applications.VGG16(include_top=False, weights=str(vgg16_weights), input_shape=(32, 32, 3))
    frozen = model.get_layer("body").get_layer("block5_conv3").get_weights()[0]
    np.testing.assert_array_equal(frozen, fresh.get_layer("block5_conv3").get_weights()[0])


def test_same_seed_same_model(cropped, tmp_path):
    facts = [run(cropped, tmp_path / n, epochs=0, seed=3).record for n in ("one", "two")]
    assert facts[0].checkpoint == facts[1].checkpoint


@pytest.mark.parametrize("classes", [2, 5])
def test_auroc_metric_is_the_mean_of_each_class_against_the_others(classes):
    rng = np.random.default_rng(0)
    truth, probability = rng.integers(classes, size=300), rng.dirichlet(np.ones(classes), 300)
    metric = backend.auroc(classes)
    metric.update_state(np.eye(classes, dtype="float32")[truth], probability.astype("float32"))
    from sklearn.metrics import roc_auc_score

    expected = roc_auc_score(np.eye(classes)[truth], probability)
    assert float(metric.result()) == pytest.approx(expected, abs=3e-3)


def test_unknown_backbone_is_one_line(cropped, tmp_path, capsys):
    arguments = ["--data", str(cropped), "--output", str(tmp_path), "--backbone", "LeNet"]
    assert main(arguments) == 2
    assert "'LeNet'" in capsys.readouterr().err


def test_missing_images_are_named(cropped, tmp_path):
    copy = shutil.copytree(cropped, tmp_path / "data")
    gone = next(iter(DataVersion.read(copy).examples("cropped", "train")["file"]))
    (tmp_path / "data" / gone).unlink()
    with pytest.raises(InputError, match=re.escape(gone)):
        train.train(copy, tmp_path / "out", "VGG16", options=TrainOptions(weights="none", image_size=32))


def test_a_validation_part_with_one_class_fails_first(cropped, tmp_path):
    copy = shutil.copytree(cropped, tmp_path / "data")
    scans, regions, facts = tables.read(copy)
    scans.loc[(scans["split"] == "validation") & (scans["label"] == "M"), "split"] = "train"
    tables.write(copy, scans, regions, facts)
    with pytest.raises(InputError, match=r"\bM\b.*\bvalidation\b"):
        train.train(copy, tmp_path / "out", "VGG16", options=TrainOptions(weights="none", image_size=32))


def test_not_a_training(tmp_path):
    with pytest.raises(InputError, match=r"train\.json"):
        record.read(tmp_path)


def run(cropped, output, **options):
    given = TrainOptions(**{"weights": "none", "image_size": 32, "epochs": 1} | options)
    return train.train(cropped, output, "Toy", "cropped", given)


def test_fold_parts_do_not_share_a_patient(cropped):
    images = Development.read(cropped, "cropped")
    for part in images.parts(3, seed=0).values():
        assert set(part) == {"train", "validation", "held-out"}
        assert (part.groupby(images.table["group"]).nunique() == 1).all()


@pytest.mark.slow
def test_folds_one_all_and_none_in_one_folder(cropped, tmp_path):
    """One fold is another training than all; the main model is the same; folds of an earlier training do not stay."""
    options = {"epochs": 0, "folds": 2, "work": tmp_path / "work"}
    output = tmp_path / "output"
    run(cropped, output, only_fold=1, **options)
    assert set(pd.read_parquet(output / "folds.parquet")["fold"]) == {1}
    folded = run(cropped, output, **options).record
    assert folded.folds == 2
    assert_every_development_image_once(cropped, output)
    plain = run(cropped, output, epochs=0).record
    assert not (output / "folds.parquet").exists()
    assert folded.validation.to_dict() == pytest.approx(plain.validation.to_dict(), abs=1e-4)


def assert_every_development_image_once(cropped, output):
    table = pd.read_parquet(output / "folds.parquet")
    assert set(table["fold"]) == {1, 2}
    assert set(table["domain"]) == {"normal", "cropped"}
    for domain in ("normal", "cropped"):
        mine, expected = table[table["domain"] == domain], DataVersion.read(cropped).examples(domain)
        expected = expected[expected["split"] != "test"]
        assert sorted(mine["file"]) == sorted(str(Path(f).relative_to(cropped)) for f in expected["file"])
    assert (table.groupby("group")["fold"].nunique() == 1).all(), "a patient is held out whole"
    assert table.groupby("fold")["label"].nunique().tolist() == [2, 2]
    assert 0 <= performance.auroc(record.out_of_fold(output, "normal")).value <= 1


def test_more_folds_than_patients(cropped, tmp_path):
    with pytest.raises(InputError, match=r"\b40 folds\b.*\bclass M\b"):
        run(cropped, tmp_path, folds=40)


@pytest.mark.slow
def test_a_tap_ends_the_body_earlier(cropped, tmp_path):
    facts = run(cropped, tmp_path, tap=toys.TAP).record
    model = load_keras(tmp_path / facts.checkpoint)
    assert model.get_layer("body").layers[-1].name == toys.TAP
    with pytest.raises(InputError, match=r"Toy.*'block9'.*\bconv1_out\b"):
        run(cropped, tmp_path / "no", tap="block9")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"seed": -1}, "seed -1"),
        ({"epochs": -1}, "epochs -1"),
        ({"image_size": 31}, "image size 31"),
        ({"folds": 1}, "folds 1"),
        ({"folds": 3, "only_fold": 4}, r"\bonly[ _]fold 4\b"),
        ({"recipe": "magic"}, r"'magic'.*two-phase, frozen, deck"),
        ({"recipe": "settings.json"}, "'settings.json'"),
        ({"recipe": "deck", "tap": "block4_pool"}, r"deck.*\btap\b"),
    ],
)
def test_settings_out_of_range_are_named_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "no data", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_mixed_precision_trains_and_is_kept_in_single_precision(cropped, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "policy", lambda: "mixed_bfloat16")
    monkeypatch.setattr(twophase, "policy", lambda: "mixed_bfloat16")
    facts = run(cropped, tmp_path).record
    assert facts.precision == "mixed_bfloat16"
    assert keras.config.dtype_policy().name == "float32"
    model = load_keras(tmp_path / facts.checkpoint)
    assert {layer.dtype_policy.name for layer in model.get_layer("body").layers} == {"float32"}
    table = DataVersion.read(cropped).examples("cropped", "validation")
    probability = inputs.predict(model, inputs.decode(table, 32))
    truth = (table["label"] == "M").to_numpy().astype(int)
    loss = -np.log(probability[np.arange(len(truth)), truth]).mean()
    assert loss == pytest.approx(facts.validation.loss, abs=1e-4)


def test_policy_follows_the_device(monkeypatch):
    for flags, expected in (("sse4_2 avx512f", "float32"), ("avx512f avx512_bf16", "mixed_bfloat16")):
        monkeypatch.setattr(backend, "_processor_flags", lambda f=flags: set(f.split()))
        assert backend.policy() == expected
    for capability, expected in (((6, 1), "float32"), ((7, 5), "mixed_float16"), ((9, 0), "mixed_bfloat16")):
        monkeypatch.setattr(backend.tf.config, "list_physical_devices", lambda kind: ["a GPU"])
        details = {"compute_capability": capability}
        monkeypatch.setattr(backend.tf.config.experimental, "get_device_details", lambda gpu, d=details: d)
        assert backend.policy() == expected


@pytest.mark.parametrize(
    ("name", "last"), [("Toy", "conv5"), pytest.param("ResNet50", "conv5", marks=pytest.mark.slow)]
)
def test_fine_tuning_leaves_all_but_the_last_block_and_batch_norm_alone(cropped, tmp_path, name, last):
    keras.utils.set_random_seed(0)
    model = backbones.build(backbones.get(name), 32, None)
    before = {w.path: w.numpy() for w in model.get_layer("body").weights}
    table = Development.read(cropped, "cropped").table
    pixels = inputs.decode(table, 32)
    job = twophase.Job(model, backbones.get(name), pixels, BINARY.one_hot(table["class"]), tmp_path, 1, 8, 0, 0.0)
    train_rows, rest = (np.flatnonzero(table["split"] == s) for s in ("train", "validation"))
    extractor, _, tuner = job.networks()
    maps = [twophase._maps(job, extractor, view) for view in range(2)]
    twophase.finetune(job, twophase.Frozen(maps, [], tuner), train_rows, rest, tmp_path)
    changed = {w.path for w in model.get_layer("body").weights if not np.array_equal(before[w.path], w.numpy())}
    assert changed
    assert all(last in path and "_bn" not in path for path in changed)


def prepare(toy, table, tmp_path, monkeypatch, recipe="two-phase") -> tuple[list[np.ndarray], np.ndarray]:
    """The images from which each view is made, and those of the job."""
    seen = []

    def batches(pixels, *arguments):
        seen.append(np.array(pixels))
        return real(pixels, *arguments)

    real = inputs.batches
    monkeypatch.setattr(inputs, "batches", batches)
    options = TrainOptions(weights="none", image_size=32, recipe=recipe)
    with twophase.prepared(
        backbones.get(toy),
        None,
        table,
        BINARY.one_hot(table["class"]),
        work=tmp_path,
        options=options,
        settings=Settings(image_size=32),
        started=0.0,
    ) as job:
        twophase.freeze(job)
        return seen, job.pixels


def test_only_the_augmented_view_of_training_images_is_of_the_disturbed_crops(toy, cropped, tmp_path, monkeypatch):
    monkeypatch.setattr(twophase, "CHUNK", 8)
    table = Development.read(cropped, "cropped").table
    training = (table["split"] == "train").to_numpy()
    assert (table["jitter_file"].notna() == training).all()
    seen, pixels = prepare(toy, table, tmp_path, monkeypatch)
    chunks = -(-len(table) // 8)
    plain, augmented = np.concatenate(seen[:chunks]), np.concatenate(seen[chunks:])
    np.testing.assert_array_equal(plain, pixels)
    np.testing.assert_array_equal(plain, inputs.decode(table, 32))
    np.testing.assert_array_equal(augmented[~training], pixels[~training])
    own = table[training].assign(file=table["jitter_file"], sha256=table["jitter_sha256"])
    np.testing.assert_array_equal(augmented[training], inputs.decode(own, 32))
    assert (augmented[training] != pixels[training]).any(axis=(1, 2, 3)).mean() > 0.9


@pytest.mark.parametrize("kind", ["deck", "normal", "no jitter"])
def test_without_disturbed_crops_both_views_are_of_the_same_images(toy, cropped, tmp_path, monkeypatch, kind):
    table = Development.read(cropped, "normal" if kind == "normal" else "cropped").table
    if kind == "no jitter":
        table = table.drop(columns=["jitter_file", "jitter_sha256"])
    (plain, augmented), _ = prepare(toy, table, tmp_path, monkeypatch, "deck" if kind == "deck" else "two-phase")
    np.testing.assert_array_equal(plain, augmented)


def test_a_disturbed_crop_that_was_changed_is_named(toy, cropped, tmp_path, monkeypatch):
    table = Development.read(cropped, "cropped").table
    row = table["jitter_file"].first_valid_index()
    table.loc[row, "jitter_sha256"] = "0" * 64
    with pytest.raises(InputError, match=re.escape(table.loc[row, "jitter_file"])):
        prepare(toy, table, tmp_path, monkeypatch)


@pytest.mark.parametrize(("recipe", "changes"), [("two-phase", True), ("frozen", True), ("deck", False)])
def test_what_the_disturbed_crops_are_changes_the_key(cropped, tmp_path, recipe, changes):
    copy = shutil.copytree(cropped, tmp_path / "data")
    options = TrainOptions(weights="none", image_size=32, recipe=recipe)
    keys = []
    for sha256 in (None, "1" * 64, pd.NA):
        scans, regions, facts = tables.read(copy)
        if sha256 is not None:
            regions["jitter_sha256"] = regions["jitter_sha256"].mask(regions["jitter_sha256"].notna(), sha256)
            tables.write(copy, scans, regions, facts)
        keys.append(train._specify(copy, "Toy", "cropped", options, None).key)
    assert len(set(keys)) == (3 if changes else 1)


def test_data_of_a_release_without_jitter_trains_as_before(cropped, tmp_path):
    copy = shutil.copytree(cropped, tmp_path / "data")
    scans, regions, facts = tables.read(copy)
    older = {name: value for name, value in facts.to_dict().items() if name != "jitter"}
    tables.write(copy, scans, regions.drop(columns=["jitter_path", "jitter_sha256"]), DataRecord(**older))
    assert DataVersion.read(copy).jitter == 0
    assert Development.read(copy, "cropped").table["jitter_file"].isna().all()
    trained = run(copy, tmp_path / "out", epochs=0).record
    assert (trained.settings.margin, trained.jitter) == (facts.margin, 0)


def test_work_within_the_output_is_refused(cropped, tmp_path):
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "work"))):
        run(cropped, tmp_path, work=tmp_path / "work")


def test_data_that_was_not_cropped(phantoms, tmp_path):
    from thyroid.ingest import ingest
    from thyroid.ingest.options import IngestOptions

    ingest.ingest(IngestOptions(phantoms / "scans", rois=phantoms / "rois.csv"), tmp_path / "data")
    with pytest.raises(InputError, match=r"thyroid\.crop"):
        run(tmp_path / "data", tmp_path / "out")


def test_a_tap_before_any_block():
    small = backbones.Backbone("EfficientNetB0", "efficientnet", "1G", "1G")
    with pytest.raises(InputError, match=r"EfficientNetB0.*'stem_activation'"):
        backbones.build(small, 32, None, tap="stem_activation")


def test_a_deck_without_enough_images_for_its_tenth(cropped, tmp_path, monkeypatch):
    monkeypatch.setattr(deck, "VALIDATION_SHARE", 0.01)
    with pytest.raises(InputError, match=r"deck\b.*\b100\b"):
        run(cropped, tmp_path, recipe="deck")


def test_a_damaged_fold_does_not_count(tmp_path, capsys):
    file = tmp_path / "fold-1.parquet"
    assert cross_validation._read_fold(file) is None
    assert capsys.readouterr().out == ""
    pd.DataFrame({"fold": [1]}).to_parquet(file)
    assert cross_validation._read_fold(file)["fold"].tolist() == [1]
    file.write_bytes(file.read_bytes()[:100])
    assert cross_validation._read_fold(file) is None
    assert f"{file}: damaged" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_fold_is_trained_again(cropped, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "tidy", lambda *arguments: None)
    run(cropped, tmp_path, epochs=0, folds=2)
    (file,) = tmp_path.glob(".work/*/fold-1.parquet")
    file.write_bytes(file.read_bytes()[:100])
    run(cropped, tmp_path, epochs=0, folds=2)
    assert f"{file}: damaged" in capsys.readouterr().out
    assert set(pd.read_parquet(tmp_path / "folds.parquet")["fold"]) == {1, 2}


@pytest.fixture(scope="module")
def plain(toy, cropped, tmp_path_factory):
    return run(cropped, tmp_path_factory.mktemp("plain"))


@pytest.mark.slow
def test_a_set_larger_than_memory_trains_the_same_model(cropped, plain, tmp_path):
    paged, inside = run(cropped, tmp_path, memory_budget=1).record, plain.record
    varying = {"seconds", "memory_mb", "checkpoint", "files", "validation"}
    assert paged.model_dump(exclude=varying) == inside.model_dump(exclude=varying)
    assert paged.validation.to_dict() == pytest.approx(inside.validation.to_dict(), abs=1e-3)


@pytest.fixture(scope="module")
def champions(toy, plain, evaluated, tmp_path_factory):
    """A registry with a champion of the toy backbone."""
    folder = tmp_path_factory.mktemp("champions")
    artefact = shutil.copytree(evaluated / "artefact", folder / "artefact")
    shutil.copy(plain.folder / plain.record.checkpoint, artefact / MODEL)
    Artefact.describe(artefact, Artefact.read(artefact).record.model_copy(update={"backbone": toy}))
    gate = toy_artefact.gate("promoted", None)
    Registry(folder / "registry").publish(artefact, gate)
    return folder / "registry"


def warm(cropped, output, root, **options):
    # another seed: a champion that kept its first epoch has the body that its own seed gave it
    settings = {"weights": "none", "image_size": 32, "epochs": 0, "recipe": "warm", "seed": 7, "registry": root}
    return train.train(cropped, output, "Toy", "cropped", TrainOptions(**(settings | options))).record


@pytest.mark.slow
def test_a_warm_start_is_taken_where_it_is_at_least_as_good(cropped, champions, tmp_path, monkeypatch, capsys):
    facts = warm(cropped, tmp_path / "warm", champions)
    starts = facts.starts
    assert facts.weights == ("champion 1" if starts.champion >= starts.weights else "none")
    assert facts.validation.auroc == pytest.approx(max(starts.champion, starts.weights), abs=1e-3)
    assert re.search(r"\bchampion 1\b", capsys.readouterr().out)
    body = load_keras(Registry(champions).find() / MODEL).get_layer(backbones.BODY).get_weights()

    def starting_at(auroc: dict[str, float], name: str) -> bool:
        """Whether the body of the model is the champion's, when a head on it would have this AUROC."""
        real = twophase.fit

        def fit(job, *arguments):
            fitted = real(job, *arguments)
            if arguments[-1] != "start":
                return fitted
            return twophase.Fitted(fitted.history, fitted.best | {"auroc": auroc[job.work.name]})

        with monkeypatch.context() as patch:
            patch.setattr(twophase, "fit", fit)
            done = warm(cropped, tmp_path / name, champions)
        kept = load_keras(tmp_path / name / done.checkpoint).get_layer(backbones.BODY).get_weights()
        return all(np.array_equal(a, b) for a, b in zip(kept, body, strict=True))

    assert starting_at({"champion": 0.7, "weights": 0.7}, "equal")
    assert not starting_at({"champion": 0.69, "weights": 0.7}, "worse")


def edited(root, folder, model=None, **changed):
    """A registry with the champion of another one, whose model.json says something else, or that is another model."""
    artefact = shutil.copytree(Registry(root).find(), folder.with_name(f"{folder.name}-artefact"))
    if model is not None:
        shutil.copy(model, artefact / MODEL)
    facts = Artefact.read(artefact).record.to_dict()
    described = {name: value for name, value in facts.items() if name in ModelDescription.model_fields}
    Artefact.describe(artefact, ModelDescription.parse(described | changed, artefact))
    Registry(folder).publish(artefact, toy_artefact.gate("promoted", None))
    return folder


@pytest.mark.parametrize("reason", ["no registry", "no champion", "backbone", "domain", "judge"])
def test_no_warm_start_from_a_champion_that_does_not_fit(cropped, champions, tmp_path, capsys, reason):
    root = tmp_path / "registry"
    row = toys.ROW
    if reason == "backbone":
        edited(champions, root, backbone="EfficientNetB7")
    elif reason == "domain":
        edited(champions, root, domain="normal")
    elif reason == "judge":
        shutil.copytree(champions, root)
        file = Registry(root).find() / SCANS
        table = pd.read_csv(file)
        table["split"] = table["split"].map({"train": "test", "test": "train", "validation": "validation"})
        table.to_csv(file, index=False)
        edited(root, tmp_path / "moved")
        root = tmp_path / "moved"
    given = "" if reason == "no registry" else root
    judging = tables.read(cropped)[0].query("split != 'train'").assign(cohort="here")
    assert warm_start.find(given, 0, row, judging, classes=BINARY, domain="cropped") is None
    expected = {
        "no registry": "no champion",
        "no champion": "no champion",
        "backbone": "EfficientNetB7",
        "domain": "normal",
        "judge": "scans",
    }
    assert expected[reason] in capsys.readouterr().out


def test_no_warm_start_from_other_layers(cropped, champions, tmp_path, capsys):
    tapped = backbones.build(toys.ROW, 32, None, toys.TAP)
    tapped.save(tmp_path / "model.keras")
    root = edited(champions, tmp_path / "registry", tmp_path / "model.keras")
    facts = warm(cropped, tmp_path / "out", root)
    assert re.search(r"\bchampion 1\b.*\blayers\b", capsys.readouterr().out)
    assert facts.weights == "none"
    assert facts.starts is None
    assert "starts" not in facts.to_dict()


@pytest.mark.slow
def test_a_warm_start_goes_on_where_it_was(cropped, champions, tmp_path, monkeypatch):
    whole = warm(cropped, tmp_path / "whole", champions, epochs=1)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(twophase, "finetune", stop)
        with pytest.raises(KeyboardInterrupt):
            warm(cropped, tmp_path / "out", champions, epochs=1, work=tmp_path / "work")
    resumed = warm(cropped, tmp_path / "out", champions, epochs=1, work=tmp_path / "work")
    assert resumed.starts == whole.starts
    assert resumed.validation == whole.validation


def test_folds_with_a_warm_start_are_refused(cropped, champions, tmp_path):
    with pytest.raises(InputError, match=r"warm\b.*\bfolds\b"):
        warm(cropped, tmp_path, champions, folds=3)
