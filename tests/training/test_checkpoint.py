"""Checkpoints give back every bit, onto other devices too, and say so when they are damaged."""

import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.training import checkpoint, sharding
from diffax.training.optimizer import adam_with_warmup as adam
from diffax.training.step import init_state
from diffax.training.summary import fingerprint


def init(key):
    return {"b": jax.random.normal(key, (3,)), "a": {"kernel": jax.random.normal(key, (64, 64)).astype(jnp.bfloat16)}}


def stream():
    return iter(grain.MapDataset.range(1000).shuffle(seed=1).batch(4).to_iter_dataset())


def state_on(devices, seed=0):
    state = init_state(init, adam(1e-3), jax.random.key(seed), sharding.data_mesh(devices))
    return state._replace(ema=jax.tree.map(lambda p: p + 1, state.params))


def saved(tmp_path, steps=(3, 5)):
    manager, data = checkpoint.manager(tmp_path), stream()
    for step in steps:
        next(data)
        state = state_on(1, seed=step)
        checkpoint.save(manager, state._replace(step=jnp.asarray(step, jnp.int32)), data, {"images": 4 * step})
    manager.wait_until_finished()
    return manager


@pytest.mark.parametrize("devices", [1, 4])
def test_what_was_saved_comes_back_to_the_bit(tmp_path, devices):
    saved(tmp_path).close()
    manager, data = checkpoint.manager(tmp_path), stream()
    assert manager.latest_step() == 5
    state, meta = checkpoint.restore(manager, state_on(devices, seed=99), data)
    assert meta["images"] == 20
    expected = state_on(1, seed=5)
    for name in ("params", "ema", "optimizer"):
        assert fingerprint(getattr(state, name)) == fingerprint(getattr(expected, name))
    assert int(state.step) == 5
    assert type(state.optimizer) is type(expected.optimizer)
    assert len(state.params["b"].sharding.device_set) == devices
    unbroken = stream()
    batches = [next(unbroken) for _ in range(3)]
    np.testing.assert_array_equal(next(data), batches[2])


def test_the_average_alone_can_be_read(tmp_path):
    saved(tmp_path).close()
    ema = checkpoint.restore_ema(checkpoint.manager(tmp_path, read_only=True), state_on(1).ema)
    assert fingerprint(ema) == fingerprint(state_on(1, seed=5).ema)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, lambda file: file.unlink()])
@pytest.mark.parametrize("item", ["state", "ema"])
def test_a_damaged_checkpoint_is_named_and_left_as_it_is(tmp_path, item, damage):
    saved(tmp_path).close()
    newest = tmp_path / "checkpoints" / "5"
    data = [f for f in (newest / item).rglob("d/*") if f.is_file()]  # the arrays, in TensorStore's OCDBT format
    for file in data:
        damage(file)
    before = sorted(str(f) for f in tmp_path.rglob("*"))
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.restore(checkpoint.manager(tmp_path), state_on(1), stream())
    assert str(newest) in str(error.value) and "go on from step 3" in str(error.value)
    assert sorted(str(f) for f in tmp_path.rglob("*")) == before
    shutil.rmtree(newest)  # as the message says
    assert int(checkpoint.restore(checkpoint.manager(tmp_path), state_on(1), stream())[0].step) == 3


def test_a_changed_position_in_the_data_is_noticed(tmp_path):
    saved(tmp_path).close()
    position = next((tmp_path / "checkpoints" / "5" / "data").glob("*.json"))
    position.write_text(position.read_text().replace("2", "3"))
    with pytest.raises(checkpoint.CheckpointError, match="position in the data"):
        checkpoint.restore(checkpoint.manager(tmp_path), state_on(1), stream())


def test_no_checkpoint_is_said_so(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="holds no checkpoint"):
        checkpoint.restore(checkpoint.manager(tmp_path), state_on(1), stream())


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    saved(tmp_path).close()
    other = state_on(1)._replace(params={"b": jnp.zeros((7,))})
    with pytest.raises(checkpoint.CheckpointError, match="damaged or of another model"):
        checkpoint.restore(checkpoint.manager(tmp_path), other, stream())


def test_old_checkpoints_go_and_keep_is_checked(tmp_path):
    manager = checkpoint.manager(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoint.save(manager, state_on(1)._replace(step=jnp.asarray(step, jnp.int32)), stream(), {})
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == [2, 3]
    with pytest.raises(ValueError, match="keep = 0"):
        checkpoint.manager(tmp_path, keep=0)
