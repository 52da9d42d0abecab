"""Checkpoints: what is kept, and what happens to damaged ones."""

import asyncio
import gc
import json
import shutil
import sys
import time
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fastervit_jax.runs.checkpoints import Checkpoints, DamagedCheckpointError
from fastervit_jax.runs.state import TrainState, new_state
from tests.runs.full_disk import files_of_at_most

OPTIMIZER = optax.adam(0.1)
RNG = np.random.default_rng(0)
PARAMS = {f"layer.{i}": RNG.standard_normal((40, 50)).astype(np.float32) for i in range(3)}
ABOUT = {"config": {"seed": 0}, "class_names": ["cat", "dog"]}


def _state(step: int) -> TrainState:
    """A state that differs from step to step."""
    params = {name: jnp.asarray(array + step) for name, array in PARAMS.items()}
    return new_state(params, {"norm.mean": jnp.full(7, step, jnp.float32)}, OPTIMIZER)


def _abstract() -> TrainState:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), _state(0)
    )


def _save(workdir, steps, **options) -> None:
    checkpoints = Checkpoints(workdir, **options)
    for step in steps:
        checkpoints.save(step, _state(step), ABOUT)
    checkpoints.close()


def _restore(workdir):
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore_newest(_abstract(), lambda step, about: None)
    finally:
        checkpoints.close()


def _assert_is(restored, step: int) -> None:
    assert restored is not None
    assert restored[0] == step
    chex.assert_trees_all_equal(restored[1], _state(step))
    assert {key: restored[2][key] for key in ABOUT} == ABOUT


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    _save(workdir, [3, 6])
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    """Checkpoints of steps 3 and 6."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_the_newest_comes_back(workdir):
    _assert_is(_restore(workdir), 6)
    assert not (workdir / "damaged_checkpoints").exists()


def test_an_empty_work_directory_has_none(tmp_path):
    assert _restore(tmp_path) is None


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_best=1)
    for step, score in enumerate([0.3, 0.9, 0.5, 0.1, 0.2], 1):
        checkpoints.save(step, _state(step), ABOUT)
        checkpoints.scores[step] = score
    checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4, 5]


def _array_files(workdir, step):
    files = (workdir / "checkpoints" / str(step)).glob("*/ocdbt.process_0/d/*")
    return sorted(files, key=lambda path: path.stat().st_size, reverse=True)


def _flip(path, byte):
    data = bytearray(path.read_bytes())
    data[byte % len(data)] ^= 0x10
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_byte_in_an_array_file_is_noticed(workdir, seed, capsys):
    rng = np.random.default_rng(seed)
    files = _array_files(workdir, 6)
    sizes = np.array([path.stat().st_size for path in files], float)
    # Bytes that no array is read from (the ends of B-tree nodes) may change without harm.
    _flip(files[rng.choice(len(files), p=sizes / sizes.sum())], int(rng.integers(1 << 30)))
    step, state, _ = _restore(workdir)
    said = capsys.readouterr().out
    if step == 3:
        _assert_is((step, state, ABOUT), 3)
        assert "The checkpoint of step 6 is damaged" in said
        assert "Resuming from step 3" in said
        assert (workdir / "damaged_checkpoints" / "6" / "model").is_dir()
    else:
        _assert_is((step, state, ABOUT), 6)


def _truncate(workdir):
    path = _array_files(workdir, 6)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(workdir):
    shutil.rmtree(workdir / "checkpoints" / "6")
    (workdir / "checkpoints" / "6").mkdir()


def _rename_a_class(workdir):
    path = workdir / "checkpoints" / "6" / "about" / "metadata"
    path.write_text(path.read_text().replace("dog", "dig"))


DAMAGE = {
    "a truncated file": _truncate,
    "a missing file": lambda workdir: _array_files(workdir, 6)[0].unlink(),
    "no arrays": lambda workdir: shutil.rmtree(workdir / "checkpoints/6/average"),
    "no optimizer": lambda workdir: shutil.rmtree(workdir / "checkpoints/6/training"),
    "no checksums": lambda workdir: shutil.rmtree(workdir / "checkpoints/6/checksums"),
    "no about": lambda workdir: shutil.rmtree(workdir / "checkpoints/6/about"),
    "metadata that is no JSON": lambda workdir: (
        workdir / "checkpoints/6/model/_METADATA"
    ).write_text("{"),
    "an empty directory": _empty,
    "a changed class name": _rename_a_class,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_one_is_set_aside(workdir, name, capsys):
    DAMAGE[name](workdir)
    _assert_is(_restore(workdir), 3)
    assert "The checkpoint of step 6 is damaged" in capsys.readouterr().out
    assert (workdir / "damaged_checkpoints" / "6").is_dir()
    _save(workdir, [6])  # the way is free
    _assert_is(_restore(workdir), 6)


def test_where_none_is_whole_nothing_is_moved(workdir):
    _truncate(workdir)
    shutil.rmtree(workdir / "checkpoints" / "3" / "model")
    with pytest.raises(DamagedCheckpointError, match=r"All checkpoints in .* are damaged.*6.*3"):
        _restore(workdir)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"3", "6"}


def test_an_empty_directory_alone_is_a_run_that_never_saved(tmp_path):
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    assert _restore(tmp_path) is None


def test_an_older_format_is_refused(workdir):
    path = workdir / "checkpoints" / "6" / "about" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(ValueError, match=r"Invalid format .* expected 2, got 1"):
        _restore(workdir)
    assert (workdir / "checkpoints" / "6").is_dir()


def test_a_save_that_fails_in_the_background_is_reported(workdir):
    checkpoints = Checkpoints(workdir)
    with files_of_at_most(2000):
        checkpoints.save(9, _state(9), ABOUT)
        with pytest.raises(
            OSError, match=r"Cannot write .* of step 9 .*\. The checkpoint of step 6 is complete"
        ):
            checkpoints.wait()
        with pytest.raises(OSError, match="Cannot write the checkpoint of step 9"):
            checkpoints.check()
        with pytest.raises(OSError, match="Cannot write the checkpoint of step 9"):
            checkpoints.save(12, _state(12), ABOUT)
    _assert_is(_restore(workdir), 6)


def test_writes_beside_one_that_failed_end_without_a_word(tmp_path, monkeypatch):
    """TensorStore's own words go to sys.unraisablehook, hundreds of times where 800 arrays fail."""
    words = []
    gc.collect()  # reads that failed in tests before this one, which would be collected in it
    monkeypatch.setattr(sys, "unraisablehook", words.append)
    params = {f"layer.{i}": jnp.full((40, 50), i, jnp.float32) for i in range(400)}
    checkpoints = Checkpoints(tmp_path)
    with files_of_at_most(2000):
        checkpoints.save(1, new_state(params, {}, OPTIMIZER), ABOUT)
        with pytest.raises(OSError, match="Cannot write the checkpoint of step 1"):
            checkpoints.wait()
        time.sleep(1)  # for the writes that go on
    assert not words
    error = ValueError("another word")
    sys.unraisablehook(error_args := types.SimpleNamespace(exc_value=error))
    assert words == [error_args]


@pytest.mark.parametrize("file, said", [("orbax/checkpoint/x.py", 0), ("other/x.py", 1)])
def test_tasks_that_fail_beside_one_another_end_without_a_word(tmp_path, caplog, file, said):
    """Orbax leaves exceptions of its tasks unread where several writes fail at once."""
    Checkpoints(tmp_path).close()
    names: dict = {}
    exec(compile("async def write(): raise ValueError('no room')", file, "exec"), names)
    loop = asyncio.new_event_loop()
    task = loop.create_task(names["write"]())
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    del task
    gc.collect()
    assert caplog.text.count("Task exception was never retrieved") == said


def test_a_save_under_way_is_not_disturbed_by_donation(tmp_path):
    """Steps go on at once in the buffers that are being saved; what is saved is the state then."""
    checkpoints = Checkpoints(tmp_path)
    shape = (1000, 1000)
    params = {f"layer.{i}": jnp.full(shape, i, jnp.float32) for i in range(10)}
    state = new_state(params, {}, OPTIMIZER)
    before = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: 2 * leaf + 1, state), donate_argnums=0)
    step(jax.tree.map(jnp.copy, state))  # compiled before the race
    checkpoints.save(1, state, ABOUT)
    for _ in range(5):
        old, state = state, step(state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    jax.block_until_ready(state)
    checkpoints.close()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), state
    )
    checkpoints = Checkpoints(tmp_path)
    _, restored, _ = checkpoints.restore_newest(abstract, lambda step, about: None)
    chex.assert_trees_all_equal(restored, before)
