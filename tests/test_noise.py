import jax
import jax.numpy as jnp
import numpy as np

import diffax as dx


def test_noise_belongs_to_the_sample_not_to_the_batch():
    key = jax.random.key(0)
    whole = dx.noise.normal(key, jnp.arange(8), (3, 2))
    parts = [dx.noise.normal(key, jnp.arange(i, i + 2), (3, 2)) for i in range(0, 8, 2)]
    np.testing.assert_array_equal(whole, jnp.concatenate(parts))
    assert len(np.unique(np.asarray(whole))) == whole.size


def test_noise_is_standard_normal():
    n = np.asarray(dx.noise.normal(jax.random.key(1), jnp.arange(1000), (50,)))
    assert abs(n.mean()) < 0.02 and abs(n.std() - 1) < 0.02
    assert abs(np.corrcoef(n[:-1].ravel(), n[1:].ravel())[0, 1]) < 0.02  # neighbours are independent
