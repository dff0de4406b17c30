"""The head of the locator: its targets, its loss, and a training that can be stopped anywhere."""

import numpy as np
import pytest

from thyroid.locate import frames, head
from thyroid.model import locator, locator_network
from thyroid.model.backend import keras
from thyroid.train import checkpoints

CELLS, CHANNELS = 8, 12
STRIDE = locator_network.STRIDE


def corners(x: float, y: float, width: float, height: float) -> np.ndarray:
    return np.array([[x, y, x + width, y + height]], np.float32)


def test_the_target_peaks_at_the_centre_and_its_weights_add_up_to_one():
    box = corners(40, 24, 48, 32)  # centre (64, 40): cell 4, 2
    target = head.targets(box, CELLS)
    assert np.argwhere(target[..., 0] == 1).tolist() == [[2, 4]]
    assert target[..., 5].sum() == pytest.approx(1, abs=1e-5)
    assert (target[target[..., 5] > 0, 1:5] == box[0]).all()


def test_a_small_nodule_keeps_its_cells_beside_a_large_one():
    boxes = np.concatenate([corners(0, 0, 120, 120), corners(70, 70, 20, 20)])
    target = head.targets(boxes, CELLS)
    assert (target[5, 5, 1:5] == boxes[1]).all()
    assert (target[..., 0] == 1).sum() == 2


def test_a_frame_whose_nodules_moved_out_of_it_has_no_target():
    assert not head.targets(np.zeros((0, 4), np.float32), CELLS).any()


def test_the_loss_is_least_for_the_right_answer():
    target = head.targets(corners(40, 24, 48, 32), CELLS)[None]
    heat = np.clip(target[..., :1], 1e-4, 1 - 1e-4)
    centres = (np.arange(CELLS) + 0.5) * STRIDE
    x, y = np.meshgrid(centres, centres)
    reach = np.stack([x - 40, y - 24, 88 - x, 56 - y], -1)[None]
    right = np.concatenate([np.log(heat / (1 - heat)), np.log(np.maximum(reach, 1e-3) / STRIDE)], -1)
    losses = [float(head.loss(target, right.astype(np.float32)))]
    for place, change in ((0, 2.0), (1, 0.7), (4, -0.7)):
        wrong = right.copy()
        wrong[..., place] += change
        losses.append(float(head.loss(target, wrong.astype(np.float32))))
    assert min(losses) == losses[0]
    assert np.isfinite(losses).all()


def test_the_loss_reads_distances_as_the_endpoint_does():
    rng = np.random.default_rng(0)
    distances = rng.normal(0, 1, (1, CELLS, CELLS, 4)).astype(np.float32)
    assert np.allclose(head._corners(distances), locator.decode(distances, STRIDE), atol=1e-3)


def test_a_view_moves_picture_and_boxes_alike():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image = np.zeros((128, 128, 3), np.uint8)
        image[50:70, 40:80] = 200
        move = frames.augmentation(rng, 128)
        moved = frames.augment(image, move, rng)
        (box,) = frames.moved_boxes(corners(40, 50, 40, 20), move, 128)
        ys, xs = np.nonzero(moved[..., 0] > 60)
        assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == pytest.approx(box.tolist(), abs=3)


@pytest.fixture(scope="module")
def learnt() -> tuple[np.ndarray, np.ndarray]:
    """Maps whose first channel is warm where the nodule is, and their targets, in two views of 20 frames."""
    rng = np.random.default_rng(0)
    maps = rng.normal(0, 0.3, (2, 20, CELLS, CELLS, CHANNELS)).astype(np.float16)
    answers = np.zeros((2, 20, CELLS, CELLS, 6), np.float32)
    for place in np.ndindex(2, 20):
        x, y = rng.uniform(8, 72, 2)
        answers[place] = head.targets(corners(x, y, 48, 40), CELLS)
        maps[place][..., 0] += (3 * answers[place][..., 0]).astype(np.float16)
    return maps, answers


def fit(learnt, folder, epochs=6):
    return head.fit(*learnt, np.arange(16), folder, epochs=epochs, seed=3, label="test")


def test_the_head_learns_where_the_nodule_is(learnt, tmp_path):
    heat, _ = head.answer(fit(learnt, tmp_path, epochs=40), learnt[0][0, 16:])
    found = heat.reshape(4, -1).argmax(1)
    true = learnt[1][0, 16:, ..., 0].reshape(4, -1).argmax(1)
    near = [
        abs(a % CELLS - b % CELLS) <= 1 and abs(a // CELLS - b // CELLS) <= 1 for a, b in zip(found, true, strict=True)
    ]
    assert sum(near) >= 3


@pytest.mark.parametrize("saves", [1, 4, 7, 9, 12])
def test_a_training_that_is_stopped_ends_as_if_it_had_not_been(learnt, tmp_path, monkeypatch, saves):
    whole = fit(learnt, tmp_path / "whole").get_weights()
    save, count = checkpoints.save, 0

    def stopped(path, **arrays):
        nonlocal count
        save(path, **arrays)
        count += 1
        if count == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "SAVE_SECONDS", 0.0)  # after every batch
        patch.setattr(checkpoints, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            fit(learnt, tmp_path / "stopped")
    again = fit(learnt, tmp_path / "stopped").get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(whole, again, strict=True))
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["head.npz"]


def test_a_finished_head_is_read_and_not_trained(learnt, tmp_path, monkeypatch):
    first = fit(learnt, tmp_path).get_weights()
    monkeypatch.setattr(keras.Model, "fit", lambda *given, **options: pytest.fail("trained again"))
    assert all(
        np.array_equal(one, other) for one, other in zip(first, fit(learnt, tmp_path).get_weights(), strict=True)
    )


def test_batches_depend_on_seed_and_epoch_alone(learnt):
    views = head.Views(*learnt, np.arange(16), seed=1)
    views.epoch = 4
    first = list(views)
    views.epoch = 5
    other = list(views)
    views.epoch = 4
    assert all(
        np.array_equal(a, b) for one, two in zip(first, views, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert not np.array_equal(first[0][0], other[0][0])
    dropped = (first[0][0] == 0).all((1, 2)).mean()
    assert 0 < dropped < 0.4
