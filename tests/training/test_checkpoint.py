"""Checkpoints give back every bit, onto other meshes too; what is damaged is noticed, set aside, and never deleted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.training import checkpoint, sharding
from diffax.training.checksum import manifest
from diffax.training.optimizer import adam_with_warmup as adam
from diffax.training.step import init_state
from diffax.training.summary import fingerprint

MESHES = [dict(devices=1), dict(data=8), dict(data=1, fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, devices=4)]


def init(key):
    kernel = jax.random.normal(key, (64, 64))
    return {
        "b": jax.random.normal(key, (3,)),
        "a": {"kernel": kernel.astype(jnp.bfloat16)},
        "block0": {"qkv": {"kernel": kernel}},
    }


def items(seed=0, mesh=None):
    mesh = sharding.make_mesh(devices=1) if mesh is None else mesh
    state = init_state(init, adam(1e-3), jax.random.key(seed), mesh, powers=1)
    return {"state": state._replace(ema=None), "ema": jax.tree.map(lambda p: p + 1, state.params)}


def saved(folder, steps=(3, 5), mesh=None, **options):
    manager = checkpoint.manager(folder, **options)
    for step in steps:
        checkpoint.save(manager, step, items(step, mesh), {"images": 4 * step}, {"loss": abs(step - 4.2)})
    checkpoint.wait(manager)
    manager.close()


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("wrote", [dict(devices=1), dict(data=2, fsdp=4)])
@pytest.mark.parametrize("reads", MESHES)
def test_what_was_saved_comes_back_to_the_bit_on_any_mesh(tmp_path, wrote, reads):
    saved(tmp_path / "c", mesh=sharding.make_mesh(**wrote))
    mesh = sharding.make_mesh(**reads)
    restored = checkpoint.restore(tmp_path / "c", items(99, mesh))
    assert restored.step == 5 and restored.meta["images"] == 20
    expected = items(5)
    assert {n: fingerprint(t) for n, t in restored.items.items()} == {n: fingerprint(t) for n, t in expected.items()}
    assert type(restored.items["state"].optimizer) is type(expected["state"].optimizer)
    asked = jax.tree.map(lambda a: a.sharding, items(99, mesh))
    assert jax.tree.map(lambda a: a.sharding, restored.items) == asked


def test_one_item_can_be_read_alone_and_one_step(tmp_path):
    saved(tmp_path)
    like = {"ema": items()["ema"]}
    assert fingerprint(checkpoint.restore(tmp_path, like).items["ema"]) == fingerprint(items(5)["ema"])
    assert fingerprint(checkpoint.read(tmp_path, 3, like).items["ema"]) == fingerprint(items(3)["ema"])
    assert checkpoint.restore(tmp_path / "nothing", like) is None


# ---- damage ----


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def remove(file):
    file.unlink()


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, remove])
@pytest.mark.parametrize("item", ["state", "ema", "meta"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, item, damage, capsys):
    folder = tmp_path / "checkpoints"
    saved(folder)
    where = "d/*" if item != "meta" else "metadata"  # the arrays, in TensorStore's OCDBT format
    for file in [f for f in (folder / "5" / item).rglob(where) if f.is_file()]:
        damage(file)
    before = files(folder / "5")
    restored = checkpoint.restore(folder, items(), read_only=True)
    assert restored.step == 3 and files(folder / "5") == before
    restored = checkpoint.restore(folder, items())
    assert restored.step == 3 and fingerprint(restored.items["state"]) == fingerprint(items(3)["state"])
    assert checkpoint.steps(folder) == [3]
    assert files(tmp_path / "checkpoints-damaged" / "5") == before
    said = capsys.readouterr().err
    assert f"checkpoint {folder / '5'} is damaged" in said and "going on from step 3" in said


def test_any_flipped_bit_of_the_arrays_is_noticed(tmp_path):
    """Also where the file format has no checksum of its own: Orbax gives the wrong numbers without a word."""
    saved(tmp_path, steps=(3,))
    data = max((f for f in (tmp_path / "3").rglob("d/*") if f.is_file()), key=lambda f: f.stat().st_size)
    whole = data.read_bytes()
    rng, unnoticed = np.random.default_rng(0), 0
    for place in rng.integers(0, len(whole), 12):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        data.write_bytes(bytes(damaged))
        try:
            found = checkpoint.read(tmp_path, 3, items())
        except checkpoint.CheckpointError:
            continue
        unnoticed += fingerprint(found.items) != fingerprint(items(3))
    assert unnoticed == 0


def test_a_changed_array_in_memory_has_another_checksum_and_a_sharded_one_the_same():
    rng = np.random.default_rng(0)
    for dtype in ("float32", "bfloat16", "int32", "uint8", "bool", "float16"):
        a = np.asarray(jnp.asarray(rng.integers(0, 2 if dtype == "bool" else 100, (16, 24))).astype(dtype))
        whole = manifest({"a": jnp.asarray(a)})
        for mesh in MESHES:
            mesh = sharding.make_mesh(**mesh)
            where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", ("fsdp", "tensor")))
            assert manifest({"a": jax.device_put(a, where)}) == whole
        for _ in range(20):
            bits = a.copy().view(np.uint8)
            bits.reshape(-1)[rng.integers(bits.size)] ^= 1
            assert manifest({"a": jnp.asarray(bits.view(a.dtype))}) != whole
    swapped = np.arange(6.0, dtype=np.float32)[[1, 0, 2, 3, 4, 5]]
    assert manifest([jnp.asarray(swapped)]) != manifest([jnp.arange(6.0, dtype=jnp.float32)])


def test_directories_that_are_no_checkpoints_do_not_count(tmp_path):
    folder = tmp_path / "checkpoints"
    saved(folder)
    (folder / "9").mkdir()
    (folder / "notes").mkdir()
    assert checkpoint.restore(folder, items()).step == 5
    assert checkpoint.steps(folder) == [3, 5] and (tmp_path / "checkpoints-damaged" / "9").is_dir()


def test_if_all_are_damaged_nothing_is_moved(tmp_path):
    saved(tmp_path / "c")
    for step in (3, 5):
        (tmp_path / "c" / str(step) / "meta" / "metadata").write_text("{")
    before = files(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"c/5 cannot be read .*nor can the 1 older"):
        checkpoint.restore(tmp_path / "c", items())
    assert files(tmp_path) == before


def test_a_changed_meta_is_noticed(tmp_path):
    saved(tmp_path / "c")
    path = tmp_path / "c" / "5" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"images": 21}))
    assert checkpoint.restore(tmp_path / "c", items()).meta["images"] == 12


def test_a_second_damaged_one_of_a_step_does_not_replace_the_first(tmp_path):
    for _ in range(2):
        saved(tmp_path / "c", steps=(3, 5) if not checkpoint.steps(tmp_path / "c") else (5,))
        (tmp_path / "c" / "5" / "meta" / "metadata").write_text("")
        assert checkpoint.restore(tmp_path / "c", items()).step == 3
    assert sorted(p.name for p in (tmp_path / "c-damaged").iterdir()) == ["5", "5-again"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda p: p | {"b": jnp.zeros(7)},
            "1 arrays of ema differ, the first b, which is float32 (3,) there and float32 (7,)",
        ),
        (lambda p: p | {"b": p["b"].astype(jnp.bfloat16)}, "float32 (3,) there and bfloat16 (3,) here"),
        (lambda p: p | {"c": p["b"]}, "the first c, which is absent there"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_kept(tmp_path, change, words):
    saved(tmp_path / "c")
    before = files(tmp_path)
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.restore(tmp_path / "c", {"ema": change(items()["ema"])})
    assert words in str(error.value)
    with pytest.raises(checkpoint.CheckpointError, match="holds no powers"):
        checkpoint.restore(tmp_path / "c", {"powers": items()["ema"]})
    assert files(tmp_path) == before


# ---- what is kept ----


def test_the_newest_the_best_and_every_so_many_are_kept(tmp_path):
    saved(tmp_path, steps=range(1, 13), keep=2, keep_every=6, keep_best=1)
    assert checkpoint.steps(tmp_path) == [4, 6, 11, 12]  # the loss was least at 4


def test_all_can_be_kept(tmp_path):
    saved(tmp_path, steps=range(1, 6), keep=None)
    assert checkpoint.steps(tmp_path) == [1, 2, 3, 4, 5]


def test_numbers_out_of_range_are_named(tmp_path):
    for name, value in (("keep", 0), ("keep_every", -1), ("keep_best", -1)):
        with pytest.raises(ValueError, match=f"{name} = {value}"):
            checkpoint.manager(tmp_path, **{name: value})


def test_a_save_that_fails_is_said_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    saved(tmp_path, steps=(3,))
    manager = checkpoint.manager(tmp_path)
    monkeypatch.setattr(manager, "save", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.save(manager, 4, items(4), {})
    assert "No space left on device" in str(error.value) and "step 3 is untouched" in str(error.value)
    assert checkpoint.restore(tmp_path, items()).step == 3
