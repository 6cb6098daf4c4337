"""Of the same features the same figures as torch-fidelity, which reports FID, KID and their kin."""

import numpy as np
import pytest

from diffax import metrics
from tests.interop.peers import peer
from tests.metrics.fidelity import torch_fidelity


@pytest.fixture(scope="module")
def fidelity():
    peer("torch")
    with torch_fidelity("metric_fid", "metric_kid", "metric_prc") as modules:
        yield modules


@pytest.fixture(scope="module")
def features():
    """Samples and real ones, float32 and positive, as features are."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((12, 48)) / 4
    a, b = (np.maximum(rng.standard_normal((300, 12)) @ mix + shift, 0) for shift in (0.2, 0.1))
    return a.astype(np.float32), b.astype(np.float32)


def test_fid(fidelity, features):
    torch, statistics = peer("torch"), fidelity.metric_fid.fid_features_to_statistics
    theirs = fidelity.metric_fid.fid_statistics_to_metric(
        *(statistics(torch.tensor(part.astype(np.float64))) for part in features), verbose=False
    )
    ours = metrics.frechet_distance(*map(metrics.moments, features))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_kid(fidelity, features):
    a, b = map(peer("torch").tensor, features)
    theirs = fidelity.metric_kid.kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=300, verbose=False)
    assert metrics.kernel_distance(*features)[0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    some = dict(kid_subsets=100, kid_subset_size=100, verbose=False)
    theirs = fidelity.metric_kid.kid_features_to_metric(a, b, **some)
    mean, std = metrics.kernel_distance(*features, subsets=100, size=100)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=0.2)
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], rel=0.4)


def test_precision_and_recall(fidelity, features):
    a, b = map(peer("torch").tensor, features)
    theirs = fidelity.metric_prc.prc_features_to_metric(a, b, prc_neighborhood=3, verbose=False)
    ours = metrics.precision_recall(*features)
    assert 0.1 < ours.precision < 0.99 and ours.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert 0.1 < ours.recall < 0.99 and ours.recall == pytest.approx(theirs["recall"], abs=1e-6)
