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


# ---- a level per pixel, a scale per sample --------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, np.ones(3), np.ones((3, 1)), np.ones((3, 3)), np.ones((3, 3, 1, 1))])
@pytest.mark.parametrize("interval", [None, (0.1, 2.0)])
def test_a_scale_runs_along_the_batch_whatever_the_shape_of_sigma(sigma, interval):
    x = jnp.zeros((3, 3, 2, 2)) if np.ndim(sigma) == 4 else jnp.zeros((3, 3))
    scale = np.array([1.0, 2.0, 3.0])
    denoise = dx.guidance.classifier_free(lambda x, s: x + 1, lambda x, s: x, scale, interval)
    for f in (denoise, jax.jit(denoise)):
        got = np.asarray(f(x, sigma))
        np.testing.assert_allclose(got, np.broadcast_to(scale.reshape(3, *[1] * (x.ndim - 1)), x.shape))


def test_the_interval_may_differ_by_pixel():
    sigma = np.array([[0.05, 0.2, 3.0], [1.0, 0.1, 2.0]])
    denoise = dx.guidance.classifier_free(lambda x, s: x + 1, lambda x, s: x, np.array([3.0, 5.0]), (0.1, 2.0))
    np.testing.assert_allclose(denoise(jnp.zeros((2, 3)), sigma), [[1, 3, 1], [5, 1, 5]])


def test_mixtures_with_a_level_per_pixel_are_guided_pixel_by_pixel():
    one, all_ = dx.gaussian_mixture(np.ones((1, 3)), 0.5), dx.gaussian_mixture(np.array([[1.0] * 3, [-1.0] * 3]), 0.5)
    x, sigma = jnp.float32([[0.2, -0.3, 1.0]] * 2), np.array([[0.5, 1.0, 3.0]] * 2)
    got = dx.guidance.classifier_free(one, all_, np.array([1.0, 4.0]), (0.7, 2.0))(x, sigma)
    cond, uncond = np.asarray(one(x, sigma)), np.asarray(all_(x, sigma))
    weight = np.array([[1, 1, 1], [1, 4, 1]])
    np.testing.assert_allclose(got, uncond + weight * (cond - uncond), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_result_has_the_dtype_of_x(dtype):
    wide = lambda x, s: x.astype(jnp.float32) + 1
    got = dx.guidance.classifier_free(wide, lambda x, s: x, 7.5, (0.1, 2.0))(jnp.zeros((2, 1), dtype), 1.0)
    assert got.dtype == dtype and (got == 7.5).all()


def test_with_x64_and_strict_promotion():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        x = jnp.zeros((2, 1), jnp.float32)
        guided = dx.guidance.classifier_free(cond, uncond, np.array([0.0, 3.0]), (0.1, 2.0))
        got = guided(x, jnp.ones(2, jnp.float32))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, [[-1], [5]])


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_label_is_dropped_alike_in_any_batch(implementation):
    key, label = jax.random.key(0, impl=implementation), np.arange(40)
    whole = dx.guidance.drop_label(key, label, 99, 0.5)
    assert 8 < (whole == 99).sum() < 32
    some = dx.guidance.drop_label(key, label[30:], 99, 0.5, np.arange(30, 40))
    np.testing.assert_array_equal(some, whole[30:])


def test_labels_keep_their_dtype():
    for dtype in (np.uint8, np.int32):
        dropped = dx.guidance.drop_label(jax.random.key(0), np.zeros(100, dtype), 10, 0.5)
        assert dropped.dtype == dtype and set(np.unique(dropped)) == {0, 10}


# ---- mistakes -------------------------------------------------------------------------------------------------------

X = jnp.zeros((64, 1))
KEY = jax.random.key(0)
free = dx.guidance.classifier_free
drop = dx.guidance.drop_label


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dx.guidance.classifier_free(cond, uncond, np.nan), "scale = nan"),
        (lambda: dx.guidance.classifier_free(cond, uncond, 2.0, interval=(2.0, 1.0)), "interval[0] = 2.0"),
        (lambda: dx.guidance.classifier_free(cond, uncond, 2.0, interval=(-1.0, 1.0)), "interval[0] = -1.0"),
        (lambda: dx.guidance.drop_label(jax.random.key(0), jnp.zeros(2, int), 1, 1.5), "rate = 1.5"),
        (lambda: free(lambda x, s: x[:, 0], uncond)(X, 1.0), "cond_denoise gave shape (64,) for x of shape (64, 1)"),
        (lambda: free(cond, lambda x, s: x[:, 0])(X, 1.0), "uncond_denoise gave shape (64,) for x of shape (64, 1)"),
        (lambda: free(cond, lambda x, s: None)(X, 1.0), "uncond_denoise gave None"),
        (lambda: free(None, uncond), "cond_denoise = None: must be a function denoise(x, sigma)"),
        (lambda: free(cond, 1.0), "uncond_denoise = 1.0: must be a function denoise(x, sigma)"),
        (lambda: free(cond, uncond, "2"), "scale = '2': must be finite"),
        (lambda: free(cond, uncond, None), "scale = None: must be finite"),
        (lambda: free(cond, uncond, jnp.ones(3))(X, 1.0), "scale has shape (3,) for x of shape (64, 1)"),
        (lambda: free(cond, uncond, interval=1.0), "interval = 1.0: must be (low, high)"),
        (lambda: free(cond, uncond, interval=(1.0,)), "interval = (1.0,): must be (low, high)"),
        (lambda: free(cond, uncond, interval="ab"), "interval = 'ab': must be (low, high)"),
        (lambda: free(cond, uncond, interval=("0", "1")), "interval[0] = '0': must lie in"),
        (lambda: free(cond, uncond, interval=(0.0, np.nan)), "interval[0] = 0.0: must be less than"),
        (lambda: free(cond, uncond)(X, jnp.ones(3)), "sigma has shape (3,) for x of shape (64, 1)"),
        (lambda: free(cond, uncond)(X, np.inf), "truncate the schedule"),
        (lambda: free(cond, uncond)(X.astype(jnp.int32), 1.0), "x is of int32"),
        (lambda: drop(KEY, np.ones(4, np.float32), 1, 0.5), "label is of float32: must be [batch] integers"),
        (lambda: drop(KEY, jnp.eye(4, dtype=int), 1, 0.5), "label has shape (4, 4): must be [batch] integers"),
        (lambda: drop(KEY, jnp.zeros((0,), int), 1, 0.5), "label has shape (0,): must be [batch] integers"),
        (lambda: drop(KEY, None, 1, 0.5), "label = None: must be [batch] integers"),
        (lambda: drop(KEY, jnp.arange(4), None, 0.5), "null = None: must be an integer"),
        (lambda: drop(KEY, jnp.arange(4), 4.0, 0.5), "null = 4.0: must be an integer"),
        (lambda: drop(KEY, np.arange(4, dtype=np.uint8), 300, 0.5), "null = 300: must be an integer from 0 to 255"),
        (lambda: drop(KEY, jnp.arange(4), 4, "0.5"), "rate = '0.5': must lie in"),
        (lambda: drop(KEY, jnp.arange(4), 4, jnp.full(4, 0.5)), "rate has shape (4,): must be one number"),
        (lambda: drop(None, jnp.arange(4), 4, 0.5), "key = None: must be a JAX key"),
        (lambda: drop(KEY, jnp.arange(4), 4, 0.5, jnp.arange(3)), "index has shape (3,): must be [batch] = (4,)"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
