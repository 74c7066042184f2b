import importlib.util

import numpy as np
import pytest
from PIL import Image
from scipy import linalg

from evaluation import frechet, metrics, scores
from evaluation.frechet import distance

here = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in frechet.PACKAGES),
    reason=f"needs {' and '.join(frechet.PACKAGES)}: pip install -r requirements-dev.txt",
)


def sample(seed, n=40, d=6):
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(0, 3, d), rng.uniform(0.2, 2, d), (n, d)) @ rng.normal(
        0, 1, (d, d)
    )


def test_it_is_the_formula_with_the_root_of_the_product_of_the_covariances():
    x, y = sample(1), sample(2, n=55)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    apart = x.mean(0) - y.mean(0)
    expected = apart @ apart + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_moved_samples_are_as_far_apart_as_they_were_moved():
    x = sample(3)
    assert distance(x, x) == pytest.approx(0, abs=1e-9)
    assert distance(x, x + 2) == pytest.approx(6 * 2**2)


def test_a_sample_twice_as_wide_has_the_closed_form_of_one_dimension():
    x = sample(4, d=1)
    expected = (2 * x).std(ddof=1) - x.std(ddof=1)
    assert distance(x - x.mean(), 2 * (x - x.mean())) == pytest.approx(expected**2)


def test_it_is_the_same_from_both_sides_and_with_fewer_members_than_dimensions():
    x, y = sample(5, n=4, d=30), sample(6, n=5, d=30)
    assert distance(x, y) == pytest.approx(distance(y, x))
    assert distance(x, y) > 0


def test_one_member_has_no_spread():
    with pytest.raises(ValueError, match="two members or more, got 1 and 3"):
        distance(np.zeros((1, 2)), np.zeros((3, 2)))


@pytest.fixture
def folder(tmp_path):
    """A set whose method "near" is the references with some noise, and "far" is noise."""
    rng = np.random.default_rng(0)
    for kind in ("lq", "gt", "near", "far"):
        (tmp_path / kind).mkdir()
    y, x = np.mgrid[0:64, 0:64]
    for i in range(4):
        smooth = 127 + 100 * np.sin((x * (i + 1) + y) / 12)[..., None] * rng.uniform(0.3, 1, 3)
        for kind, noise in (("gt", 0), ("near", 1), ("far", 400), ("lq", 0)):
            pixels = (smooth + rng.normal(0, noise, smooth.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
    return tmp_path


@here
def test_the_proxy_ranks_sets_by_how_like_the_references_they_are(folder):
    metric = metrics.table()["fd_efficientnet_proxy"]
    assert scores.score(folder, [metric]) == []
    found = {s.method: s.value for s in scores.read(folder) if s.picture == scores.WHOLE_SET}
    assert 0 < found["near"] < found["far"] / 2
    assert "proxy" in metric.title
    assert not metric.title.startswith("FID")


@here
def test_a_set_too_small_for_it_is_a_problem_said_and_not_a_number(folder):
    for path in folder.glob("*/[123].png"):
        path.unlink()
    [near, far] = scores.score(folder, [metrics.table()["fd_efficientnet_proxy"]])
    assert "two members or more, got 1 and 1" in near + far
    assert scores.read(folder) == []
