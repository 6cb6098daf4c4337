"""A step keeps the dtypes of the state, so that a run can be resumed with jax_enable_x64 or without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx
from diffax.training import checkpoint, sharding
from diffax.training.metrics import TrainMetrics
from diffax.training.optimizer import adam_with_warmup as adam
from diffax.training.step import init_state, train_step


def init(key):
    return {"w": 0.1 * jax.random.normal(key, (4, 4), jnp.float32)}


def apply(params, x, c_noise, cond):
    return jnp.tanh(x @ params["w"] + c_noise[:, None].astype(x.dtype))


def loss(params, batch, key, step=None, sampler=None, part=None):
    value, aux = dx.losses.denoising(apply, params, key, batch["x"], part=part)
    return value.astype(jnp.promote_types(value.dtype, jnp.float32)), aux


def dtypes(tree):
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]


def started(accumulate=1):
    mesh, optimizer = sharding.data_mesh(1), adam(1e-2, warmup_steps=2, clip_norm=1.0)
    step = train_step(
        loss, optimizer, mesh, batch_size=4, ema_halflife=100.0, powers=(0.1,), accumulate=accumulate, spike=2.0
    )
    state = init_state(init, optimizer, jax.random.key(0), mesh, powers=1)
    metrics = sharding.put_replicated(TrainMetrics.empty(), mesh)
    batch = sharding.put_batch({"x": np.float32(np.random.default_rng(0).normal(size=(4, 4)))}, mesh)
    return step, state, metrics, batch


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_keeps_the_dtypes_and_x64_does_not_change_them(accumulate):
    found = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            step, state, metrics, batch = started(accumulate)
            before = dtypes((state, metrics))
            found.append(dtypes(state))
            for _ in range(2):
                state, metrics, _ = step(state, metrics, batch, jax.random.key(1))
            assert dtypes((state, metrics)) == before
            assert step._cache_size() == 1
    assert found[0] == found[1]


@pytest.mark.parametrize("saved", [False, True])
def test_a_run_is_resumed_with_64_bits_or_without(tmp_path, saved):
    with jax.enable_x64(saved):
        step, state, metrics, batch = started()
        state, _, _ = step(state, metrics, batch, jax.random.key(1))
        manager = checkpoint.manager(tmp_path)
        checkpoint.save(manager, 1, {"state": state}, {})
        checkpoint.wait(manager)
        manager.close()
    for wide in (False, True):
        with jax.enable_x64(wide):
            _, like, _, _ = started()
            restored = checkpoint.restore(tmp_path, {"state": like}).items["state"]
            jax.tree.map(np.testing.assert_array_equal, restored, state)
