import numpy as np
import pytest

from thyroid.imaging.phantom_nodule import GAP, SIGNS, Nodule, Shape

SMOOTH = Nodule(radius=0.1, aspect=0.8, echo=-10, roughness=0, cyst=0, halo=0, calcifications=0)


def painted(shape: Shape, centre: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    return shape.paint(np.zeros(size, np.float32), centre, np.random.default_rng(0))


def test_extent_holds_the_whole_nodule():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shape = Shape.of(Nodule.of("BM"[seed % 2], rng), rng)
        ys, xs = np.nonzero(painted(shape, (300, 150), (300, 600)))
        reached = 300 - xs.min(), 150 - ys.min(), xs.max() - 300, ys.max() - 150
        assert all(GAP <= far - side <= GAP + 2 for far, side in zip(shape.extent(300), reached, strict=True))


@pytest.mark.parametrize("size", [(200, 100), (200, 40), (200, 30)])
def test_is_placed_within_what_is_free_and_shrinks_if_it_must(size):
    free = np.ones(size, bool)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        shape, (x, y) = Shape.of(SMOOTH, rng).placed(free, np.zeros(size), rng)
        assert (shape.nodule.radius < SMOOTH.radius) == (size[1] < 60)
        mask = painted(shape, (x, y), size)
        assert mask.any()
        assert not mask[:, [0, -1]].any()
        assert not mask[[0, -1]].any()


def test_is_placed_as_near_to_the_lobe_as_it_fits():
    free = np.ones((200, 300), bool)
    free[:, 100:] = False
    eccentricity = np.abs(np.arange(300) - 200) / 50 * np.ones((200, 1))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        _, (x, _) = Shape.of(SMOOTH, rng).placed(free, eccentricity, rng)
        assert 55 < x < 100


def test_no_place_where_the_centre_may_not_be():
    free, eccentricity = np.ones((200, 300), bool), np.full((200, 300), np.inf)
    eccentricity[90:110, 20:40] = 0.3
    for seed in range(10):
        rng = np.random.default_rng(seed)
        _, (x, y) = Shape.of(SMOOTH, rng).placed(free, eccentricity, rng)
        assert 20 <= x < 40
        assert 90 <= y < 110


def test_signs_are_imperfect():
    for odds in SIGNS.values():
        assert 0 < odds["B"] < 1
        assert 0 < odds["M"] < 1
