"""Updates that are not finite, or jump, are left out; the rest goes on."""

import jax
import jax.numpy as jnp
import numpy as np

from diffax.training import guard


def judged(losses, norms=None, **options):
    state, oks = guard.init(), []
    for i, loss in enumerate(losses):
        norm = 1.0 if norms is None else norms[i]
        ok, state = guard.judge(state, jnp.float32(loss), jnp.float32(norm), **options)
        oks.append(bool(ok))
    return oks, state


def test_not_finite_is_left_out_and_counted():
    nan, inf = np.nan, np.inf
    oks, state = judged([1, nan, 1, inf, 1, 1, 1, nan, nan], [1, 1, 1, 1, nan, inf, 1, 1, 1])
    assert oks == [True, False, True, False, False, False, True, False, False]
    assert [int(n) for n in (state.in_a_row, state.skipped, state.made)] == [2, 6, 3]


def test_a_spike_is_measured_by_the_geometric_mean_of_what_counted():
    rng = np.random.default_rng(0)
    losses = np.exp(rng.normal(0.5, 0.1, 150))
    oks, state = judged(losses, spike=3.0)
    assert all(oks)
    mean, log = 0.0, np.log(losses)
    for made, value in enumerate(log, 1):  # a plain mean over the first 100, then one that forgets
        mean += (value - mean) / min(made, 100)
    np.testing.assert_allclose(state.log_loss, mean, rtol=1e-5)
    for factor, expected in ((2.9, True), (3.1, False)):
        ok, _ = guard.judge(state, jnp.float32(np.exp(mean) * factor), spike=3.0)
        assert bool(ok) is expected
    # not before a hundred were seen, nor unless asked
    assert judged([1.0] * 50 + [1e6], spike=3.0)[0][-1] and judged([1.0] * 150 + [1e6])[0][-1]
    # what was left out does not move the mean
    _, after = guard.judge(state, jnp.float32(1e6), spike=3.0)
    assert after.log_loss == state.log_loss and int(after.skipped) == 1


def test_its_dtypes_do_not_depend_on_x64_nor_on_the_loss():
    wanted = [np.dtype(np.int32)] * 3 + [np.dtype(np.float32)]
    for wide in (False, True):
        with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
            for dtype in (jnp.bfloat16, jnp.float32, *[jnp.float64] * wide):
                state = guard.init()
                assert [leaf.dtype for leaf in state] == wanted
                loss = jnp.asarray(1.5, dtype)
                ok, state = guard.judge(state, loss, loss, spike=2.0)
                assert bool(ok) and [leaf.dtype for leaf in state] == wanted
                np.testing.assert_allclose(state.log_loss, np.log(1.5), rtol=1e-6)


def test_it_compiles_to_a_few_scalars():
    state = guard.init()
    text = jax.jit(lambda g, x: guard.judge(g, x, spike=2.0)).lower(state, jnp.float32(1)).as_text()
    assert "custom_call" not in text
