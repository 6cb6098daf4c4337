import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx


def cond(x, sigma):
    return x + 1


def uncond(x, sigma):
    return x - 1


def test_classifier_free_extrapolates():
    x = jnp.zeros((2, 3))
    for scale, expected in [(0.0, -1), (1.0, 1), (3.0, 5)]:
        np.testing.assert_allclose(dx.guidance.classifier_free(cond, uncond, scale)(x, 1.0), expected)


def test_on_denoisers_and_on_noise_predictions_the_rule_is_the_same():
    # eps = (x - D) / sigma is affine in D
    x, sigma = jnp.ones((1, 2)), 0.5
    guided = dx.guidance.classifier_free(cond, uncond, 2.5)(x, sigma)
    eps_c, eps_u = (x - cond(x, sigma)) / sigma, (x - uncond(x, sigma)) / sigma
    np.testing.assert_allclose(guided, x - sigma * (eps_u + 2.5 * (eps_c - eps_u)), rtol=1e-6)


def test_scale_may_differ_by_sample():
    x = jnp.zeros((2, 2))
    for interval in (None, (0.1, 2.0)):
        got = dx.guidance.classifier_free(cond, uncond, jnp.array([0.0, 3.0]), interval)(x, 1.0)
        np.testing.assert_allclose(got, [[-1, -1], [5, 5]])


def test_interval_guides_inside_only():
    denoise = dx.guidance.classifier_free(cond, uncond, 3.0, interval=(0.1, 2.0))
    x = jnp.zeros((4, 1))
    got = denoise(x, jnp.array([0.1, 0.11, 2.0, 2.1]))[:, 0]
    np.testing.assert_allclose(got, [1, 5, 5, 1])
    np.testing.assert_allclose(denoise(x, 1.0), 5)


def test_guidance_of_exact_mixtures_moves_towards_the_class():
    right = dx.gaussian_mixture(np.array([[1.0]]), 0.5)
    both = dx.gaussian_mixture(np.array([[-1.0], [1.0]]), 0.5)
    x = jax.random.normal(jax.random.key(0), (200, 1)) * 10
    sigmas = dx.schedules.sigmas(dx.schedules.karras(0.01, 10), 20)
    plain = dx.sample(dx.guidance.classifier_free(right, both, 1.0), x, sigmas)
    strong = dx.sample(dx.guidance.classifier_free(right, both, 3.0), x, sigmas)
    assert float(plain.mean()) == pytest.approx(1, abs=0.15)
    assert float(strong.mean()) > float(plain.mean()) + 0.02


def test_labels_are_dropped_at_the_rate_and_per_sample():
    label = jnp.arange(20_000) % 10
    dropped = dx.guidance.drop_label(jax.random.key(0), label, 10, 0.2)
    assert float((dropped == 10).mean()) == pytest.approx(0.2, abs=0.01)
    assert ((dropped == 10) | (dropped == label)).all()
    np.testing.assert_array_equal(dropped[:7], dx.guidance.drop_label(jax.random.key(0), label[:7], 10, 0.2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dx.guidance.classifier_free(cond, uncond, np.nan), "scale = nan"),
        (lambda: dx.guidance.classifier_free(cond, uncond, 2.0, interval=(2.0, 1.0)), "interval[0] = 2.0"),
        (lambda: dx.guidance.classifier_free(cond, uncond, 2.0, interval=(-1.0, 1.0)), "interval[0] = -1.0"),
        (lambda: dx.guidance.drop_label(jax.random.key(0), jnp.zeros(2, int), 1, 1.5), "rate = 1.5"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
