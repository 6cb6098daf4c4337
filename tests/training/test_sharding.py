"""Where arrays lie: the rule, what it saves, which messages the compiled step sends, and that the numbers stay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import diffax as dx
from diffax import models
from diffax.training import sharding
from diffax.training.metrics import TrainMetrics
from diffax.training.optimizer import adam_with_warmup as adam
from diffax.training.step import init_state, train_step
from experiments.bench.collectives import messages

NETWORKS = {
    "unet": models.unet((8, 8, 1), channels=32, multipliers=(1,), blocks=1, attention=(8,), num_classes=3),
    "dit": models.dit((8, 8, 1), patch=2, width=64, depth=1, heads=4, num_classes=3),
}
BATCH = 16


@functools.cache
class Run:
    """A state, its compiled step, and a stream of batches, on a mesh; one for all tests."""

    def __init__(self, name, **axes):
        network = NETWORKS[name]
        self.mesh, optimizer = sharding.make_mesh(**axes), adam(1e-3, warmup_steps=10)

        def loss(params, batch, key, step, sampler):
            return dx.losses.denoising(network.apply, params, key, batch["x"], batch["label"])

        self.step = train_step(loss, optimizer, self.mesh, batch_size=BATCH, ema_halflife=1000.0)
        self.state = init_state(network.init, optimizer, jax.random.key(0), self.mesh)
        self.metrics = sharding.put_replicated(TrainMetrics.empty(), self.mesh)
        self.rng = np.random.default_rng(0)

    def batch(self):
        x = np.float32(self.rng.normal(size=(BATCH, 8, 8, 1)))
        return sharding.put_batch({"x": x, "label": np.int32(self.rng.integers(0, 4, BATCH))}, self.mesh)

    def losses(self, steps):
        found = []
        for _ in range(steps):
            self.state, self.metrics, seen = self.step(self.state, self.metrics, self.batch(), jax.random.key(1))
            found.append(float(seen.loss))
        assert self.step._cache_size() == 1
        return found

    def messages(self):
        """{kind: shapes of what is sent} of the compiled step."""
        text = self.step.lower(self.state, self.metrics, self.batch(), jax.random.key(1)).compile().as_text()
        return {kind: [sent.shape for sent in found] for kind, found in messages(text).items()}


@functools.cache
def alone(name):
    return Run(name, devices=1).losses(50)


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("unet", dict(data=2, devices=2)),
        ("unet", dict(data=8)),
        ("unet", dict(data=1, fsdp=2, devices=2)),
        ("unet", dict(data=2, fsdp=4)),
        ("unet", dict(data=1, fsdp=8)),
        ("dit", dict(data=4, devices=4)),
        ("dit", dict(data=1, fsdp=4, devices=4)),
        ("dit", dict(data=2, fsdp=2, tensor=2)),
        ("dit", dict(data=1, tensor=4, devices=4)),
    ],
    ids=lambda v: "-".join(f"{k}{n}" for k, n in v.items()) if isinstance(v, dict) else v,
)
def test_fifty_losses_are_those_of_one_device(name, axes):
    np.testing.assert_allclose(Run(name, **axes).losses(50), alone(name), rtol=1e-5)


@pytest.mark.parametrize("axes", [dict(data=1, fsdp=2, devices=2), dict(data=2, fsdp=4), dict(data=1, fsdp=8)])
def test_fsdp_divides_the_bytes_of_a_device(axes):
    state, shards = Run("unet", **axes).state, axes["fsdp"]
    for part in (state.params, state.ema, state.optimizer):
        leaves = [leaf for leaf in jax.tree.leaves(part) if leaf.size >= 1024]
        whole = sum(leaf.nbytes for leaf in leaves)
        for device in range(shards):
            held = sum(leaf.addressable_shards[device].data.nbytes for leaf in leaves)
            assert held == pytest.approx(whole / shards, rel=0.01)
        everything = sum(leaf.nbytes for leaf in jax.tree.leaves(part))
        assert whole > 0.95 * everything  # what is too small to be split is next to nothing


def test_data_parallelism_sends_the_gradients_and_nothing_else():
    messages = Run("unet", data=8).messages()
    assert set(messages) == {"all-reduce"}
    sent = sum(np.prod(shape, dtype=int) for shape in messages["all-reduce"])
    parameters = models.parameters(NETWORKS["unet"])
    assert parameters <= sent <= 1.02 * parameters + 1000


@pytest.mark.parametrize(
    ("name", "axes"), [("unet", dict(data=1, fsdp=8)), ("dit", dict(data=1, fsdp=8))], ids=["unet", "dit"]
)
def test_fsdp_gathers_weights_and_never_the_batch(name, axes):
    """A gathered or exchanged activation would have the batch as its first axis, or positions of an image."""
    run = Run(name, **axes)
    messages, weights = run.messages(), jax.tree.leaves(run.state.params)
    assert not {"all-to-all", "collective-permute"} & set(messages)
    whole = {tuple(sorted(w.shape)) for w in weights} | {
        tuple(sorted(np.prod(w.shape, keepdims=True))) for w in weights
    }
    assert messages["all-gather"]
    for shape in messages["all-gather"]:
        assert tuple(sorted(s for s in shape if s != 1)) in {tuple(s for s in w if s != 1) for w in whole}, shape


def test_tensor_parallelism_sums_and_sends_no_weights():
    """Two sums a block forwards (after attention and after the feed-forward layer), and their mirror images."""
    messages = Run("dit", data=4, tensor=2).messages()
    assert set(messages) == {"all-reduce"}
    activations = [shape for shape in messages["all-reduce"] if shape[:1] == (BATCH // 4,) and shape[-1:] == (64,)]
    assert len(activations) >= 4


@pytest.mark.parametrize(
    ("path", "shape", "axes", "expected"),
    [
        ("params/block3/qkv/kernel", (64, 192), dict(tensor=2), P(None, "tensor")),
        ("params/block3/qkv/kernel", (64, 192), dict(tensor=2, fsdp=2), P("fsdp", "tensor")),
        ("optimizer/1/0/mu/block3/narrow/kernel", (256, 64), dict(tensor=2), P("tensor")),
        ("block3/narrow/bias", (64,), dict(tensor=2), P()),
        ("ema/block3/widen/bias", (256,), dict(tensor=4), P("tensor")),
        ("params/middle_attention/block0/widen/kernel", (64, 512), dict(tensor=2), P()),
        ("params/down0_block0/widen/kernel", (64, 64), dict(tensor=2), P()),
        ("params/block3/qkv/kernel", (64, 193), dict(tensor=2), P()),
        ("params/conv_in/kernel", (3, 3, 64, 128), dict(fsdp=4), P(None, None, None, "fsdp")),
        ("params/conv_in/kernel", (3, 3, 128, 66), dict(fsdp=4), P(None, None, "fsdp")),
        ("params/conv_in/kernel", (3, 3, 127, 67), dict(fsdp=4), P()),
        ("params/conv_in/bias", (1023,), dict(fsdp=1), P()),
        ("params/conv_in/bias", (512,), dict(fsdp=4), P()),
        ("step", (), dict(fsdp=8), P()),
    ],
)
def test_the_rule(path, shape, axes, expected):
    assert sharding.spec(path, shape, sharding.make_mesh(**axes)) == expected


def test_the_pieces_of_dit_have_the_paths_that_the_rule_knows():
    """A renamed layer would silently stay whole."""
    mesh = sharding.make_mesh(data=4, tensor=2)
    network = models.dit((8, 8, 1), patch=2, width=64, depth=2, heads=4)
    leaves = jax.tree_util.tree_flatten_with_path(jax.eval_shape(network.init, jax.random.key(0)))[0]
    split = [leaf.size for path, leaf in leaves if "tensor" in sharding.place({"a": leaf}, mesh)["a"].spec] or [
        leaf.size
        for path, leaf in leaves
        if "tensor" in sharding.spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, mesh)
    ]
    blocks = 2 * (64 * 192 + 192 + 64 * 64 + 64 * 256 + 256 + 256 * 64)
    assert sum(split) == blocks


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (dict(data=3), "data = 3, fsdp = 1, tensor = 1: must multiply to the 8 device(s)"),
        (dict(data=-1, fsdp=3), "data = 2, fsdp = 3, tensor = 1: must multiply to the 8"),
        (dict(data=-1, fsdp=-1), "fsdp = -1: only one axis"),
        (dict(data=0), "data = 0: must be at least 1"),
        (dict(tensor=-2), "tensor = -2"),
        (dict(devices=9), "devices = 9: must lie in [1, 8]"),
        (dict(devices=0), "devices = 0"),
    ],
)
def test_a_mesh_that_cannot_be_is_named(axes, words):
    with pytest.raises(ValueError) as error:
        sharding.make_mesh(**axes)
    assert words in str(error.value)


def test_axes_are_filled_and_batches_are_put_where_they_belong():
    assert dict(sharding.make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    assert sharding.batch_shards(mesh) == 4
    x = np.arange(8, dtype=np.float32)
    for put in (sharding.put_batch, sharding.put_whole):
        placed = put({"x": x}, mesh)["x"]
        np.testing.assert_array_equal(sharding.to_host(placed), x)
        assert {s.data.shape for s in placed.addressable_shards} == {(2,)}
    whole = sharding.put_replicated(jnp.arange(3), mesh)
    assert whole.sharding.is_fully_replicated and len(whole.sharding.device_set) == 8
