"""Any value of any key: the config is accepted and builds, or refused by an error with the key."""

import collections
import contextlib
import io
import math
import re
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from absl import app, flags
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from fastervit_jax.commands.flags import _parse_flags
from fastervit_jax.parallel.mesh import batch_shards
from fastervit_jax.runs.config import by_dotted_key, default_config, mesh_of, mixing_group
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.runs.workdir import load_config, save_config
from fastervit_jax.training import build
from fastervit_jax.training.bookkeeping import Timetable
from fastervit_jax.training.tasks import task_of
from tests.small.run import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
SMALL = ("digits", "digits_recipe", "detect_digits", "segment_digits")
EPOCH_STEPS = 312
KEYS = by_dotted_key(default_config().to_dict())

TEXTS = [
    *(
        "",
        "none",
        "float32",
        "bfloat16",
        "float16",
        "bilinear",
        "random",
        "white",
        "ignore",
        "apply",
    ),
    *("adamw", "lamb", "sgd", "cosine", "poly", "step", "center", "squash", "slide", "whole"),
    *("top1", "loss", "AP", "mIoU", "classification", "detection", "segmentation", "rand-m9-n2"),
    *("rand-p0.5-t3a", "rand-m9-m", "stem", "faster_vit_1_224", "faster_vit_0_any_res", "é <b>"),
    *("dino_4scale_faster_vit_0_224", "dino_5scale_faster_vit_4_224", "upernet_faster_vit_1"),
]
WHOLES = [-(2**40), -2, -1, *range(9), 12, 16, 24, 32, 64, 100, 128, 224, 2**31 - 1, 2**31, 2**33]
NUMBERS = [-1.0, -1e-9, 0.0, 1e-320, 1e-6, 0.1, 0.25, 0.5, 0.999, 1.0, 1.5, 2.0, 20.0, 1e9, 1e308]
NUMBERS += [math.nan, math.inf, -math.inf]
STRANGE = [None, True, b"x", {1}, {}, object(), np.int64(4), np.float32(0.5), 1j, [], ()]

texts = st.sampled_from(TEXTS) | st.text(max_size=12)
wholes = st.sampled_from(WHOLES) | st.integers(0, 300)
numbers = st.sampled_from(NUMBERS) | st.floats(0, 2)
sizes = st.sampled_from(
    [-1, *range(9), 12, 16, 30, 32, 64]
)  # a network of 2**31 blocks fits nowhere


def _tuples(element, *lengths):
    lists = [st.lists(element, min_size=n, max_size=n) for n in lengths or (0, 1, 2, 4, 5)]
    return st.one_of(lists).map(tuple)


def _anything(integers):
    scalars = st.sampled_from(STRANGE) | texts | integers | numbers
    return st.sampled_from(STRANGE) | scalars | _tuples(scalars) | _tuples(_tuples(integers, 2))


OF_A_KEY = {
    "mesh.data": st.sampled_from([-1, 1, 2, 4, 8]),
    "mesh.fsdp": st.sampled_from([1, 2, 4, 8, -1]),
    "mesh.tensor": st.sampled_from([1, 2, 4, 8, -1]),
    "batch_size": st.sampled_from([1, 2, 6, 8, 12, 16, 32, 64, 100, 128, 4096]),
    "evaluation.batch_size": st.sampled_from([1, 2, 6, 8, 12, 16, 32, 64, 100, 128, 4096]),
    "model.depths": _tuples(st.integers(0, 2), 4),
    "model.encoder_layers": st.integers(-1, 2),
    "model.decoder_layers": st.integers(-1, 2),
    "model.num_heads": _tuples(st.sampled_from([1, 2, 4, 8]), 4),
    "model.window_size": _tuples(st.sampled_from([1, 2, 3, 4, 7]), 4),
    "model.hat": _tuples(st.booleans(), 4),
    "model.resolution": st.sampled_from([32, 64, 96, 224, (64, 96), (96, 96), (225, 224), 0, "64"]),
    "model.dim": st.sampled_from([0, 4, 8, 24, 30, 64]),
    "data.buckets": _tuples(_tuples(wholes, 2), 1, 2),
    "finetune.frozen": _tuples(
        st.sampled_from(["stem", "stages", "stages.0", "head", "backbone", "norm", "ste", "1"])
    ),
    "resize.short_sides": _tuples(wholes),
    "resize.crop_short_sides": _tuples(wholes),
    "resize.crop_sides": _tuples(wholes, 2),
    "optimizer.drop_epochs": _tuples(numbers),
    "evaluation.scales": _tuples(numbers),
    "evaluation.stride": wholes,
    "resume.allow_changes": _tuples(st.sampled_from(sorted(KEYS)), 0, 1, 2),
    "remat": _tuples(st.integers(0, 5)),
    "rand_augment": st.sampled_from(
        ["rand", "m9", "mstd", "n3", "p2", "inc1", "t3aw", "mmax"]
    ).flatmap(lambda part: st.lists(st.sampled_from([part, "rand-", "-", "5", "."])).map("".join)),
}


def _integers(key: str):
    if key.endswith("_layers"):
        return st.integers(-1, 3)
    return sizes if key.startswith("model.") else wholes


def _type(key: str) -> type:
    section, _, name = key.rpartition(".")
    config = default_config()
    return (config[section] if section else config).get_type(name)


def _likely(key: str):
    """Values of the type of a key, many of them possible."""
    if key in OF_A_KEY:
        return OF_A_KEY[key]
    by_type = {bool: st.booleans(), int: _integers(key), float: numbers, str: texts}
    if _type(key) is tuple:
        return _tuples(by_type[type(KEYS[key][0])], len(KEYS[key]))
    return by_type[_type(key)]


def _odd(key: str):
    """Values that ml_collections takes for a key, but few others would."""
    anything = _anything(_integers(key))
    tuples = _tuples(anything) | st.lists(anything, max_size=2)
    by_type = {
        bool: st.none(),
        int: st.sampled_from([None, True, False, 2**70]),
        float: st.sampled_from([None, True, math.nan, math.inf, -math.inf, 2**70]),
        str: st.none() | st.text(),
        tuple: st.none() | tuples,
    }
    return by_type.get(_type(key), anything)


@st.composite
def changes(draw) -> dict:
    """Values of one to three keys, one of which may be odd."""
    keys = st.sampled_from(sorted(KEYS)) | st.sampled_from(sorted(OF_A_KEY))
    chosen = draw(st.lists(keys, min_size=1, max_size=3, unique=True))
    changed = {key: draw(_likely(key)) for key in chosen}
    if draw(st.booleans()):
        changed[chosen[0]] = draw(_odd(chosen[0]))
    return changed


def _base(recipe: str):
    config = load_recipe(recipe)
    config.model.depths = (1, 1, 1, 1)
    if config.task == "detection":
        config.model.encoder_layers = config.model.decoder_layers = 1
    config.batch_size = config.group_size = config.evaluation.batch_size = 16
    return config


def _mentions(message: str, key: str) -> bool:
    """Whether a message names a key; of the network's options and the mesh's sizes, the section."""
    section = key.partition(".")[0]
    return f"config.{key}" in message or (
        section in ("model", "mesh") and f"config.{section}:" in message
    )


def _program(task, config, mesh):
    return build.program(task, config, mesh, epoch_steps=EPOCH_STEPS)


class _KnownPrograms(dict):
    """Programs by the keys that shapes depend on, so that each is built once."""

    def __call__(self, task, config, mesh):
        keys = ("model", "finetune", "remat", "remat_transformer", "scan_blocks")
        key = str([[config[key] for key in keys], config.optimizer.name, mesh.shape])
        if key not in self:
            self[key] = _program(task, config, mesh)
        return self[key]


def _build(config, *, devices: int, hosts: int, folder, program=_program, trace=False) -> None:
    """All that a run makes of its config before it compiles. Nothing here sees the changed keys."""
    task = task_of(config)
    mesh = mesh_of(config, jax.devices()[:devices])
    shards = batch_shards(mesh)
    task.check(config, batch_shards=shards, hosts=hosts, tensor=mesh.shape["tensor"])
    times = Timetable(config, EPOCH_STEPS)
    schedule = build.learning_rate(config, EPOCH_STEPS)
    for count in (0, times.total_steps // 2, times.total_steps - 1):
        rate = float(schedule(count))
        assert 0 <= rate <= config.optimizer.learning_rate * (1 + 1e-6), rate
    build.optimizer(config, schedule)
    built = program(task, config, mesh)
    group = mixing_group(config, shards)
    task.objective(config, epoch_steps=EPOCH_STEPS, mixing_group=group)
    shapes = task.batch_shapes(config)
    save_config(config, folder)
    assert load_config(folder).to_dict() == config.to_dict()
    if trace:
        step = build.train_step(
            task, config, mesh, built, epoch_steps=EPOCH_STEPS, mixing_group=group
        )
        _, metrics = jax.eval_shape(step, built.state, shapes)
        assert metrics["loss"].shape == ()


def _outcome(config, changed: dict, **options) -> str:
    """Builds a config: accepted, or refused by a message with one of the changed keys."""
    try:
        _build(config, **options)
    except ValueError as error:
        assert any(_mentions(str(error), key) for key in changed), f"{changed}: {error}"
        return "refused"
    return "accepted"


def _set(config, changed: dict) -> bool:
    """Sets keys; whether ml_collections takes the values. Its refusal has the name of the key."""
    for key, value in changed.items():
        section, _, name = key.rpartition(".")
        try:
            (config[section] if section else config)[name] = value
        except (TypeError, ValueError) as error:
            assert name in str(error), f"{key}: {error}"
            return False
    return True


def _check_values(count: int, recipes, folder, *, devices=(1, 2, 4, 8), **options) -> None:
    outcomes: collections.Counter = collections.Counter()

    @settings(
        max_examples=count, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        st.sampled_from(recipes),
        changes(),
        st.sampled_from(devices),
        st.sampled_from([1, 1, 2]),
    )
    def check(recipe, changed, devices, hosts):
        config = _base(recipe)
        outcome = "refused by type"
        if _set(config, changed):
            outcome = _outcome(
                config, changed, devices=devices, hosts=hosts, folder=folder, **options
            )
        outcomes[outcome] += 1

    check()
    print(dict(outcomes))
    # A check that refuses everything, or nothing, would pass all of the above.
    assert min(outcomes["accepted"], outcomes["refused"]) > sum(outcomes.values()) / 20, outcomes


@pytest.mark.parametrize("recipe", SMALL)
def test_unchanged(recipe, tmp_path):
    _build(_base(recipe), devices=8, hosts=1, folder=epath.Path(tmp_path))


def test_any_value_of_any_key(tmp_path):
    programs = _KnownPrograms()
    _check_values(120, SMALL, epath.Path(tmp_path), devices=(1, 8), program=programs)


@pytest.mark.slow
def test_thousands_of_values(tmp_path):
    _check_values(2000, RECIPES, epath.Path(tmp_path))


@pytest.mark.slow
def test_steps_of_hundreds_of_values(tmp_path):
    _check_values(150, SMALL, epath.Path(tmp_path), trace=True)


def test_every_key_refuses_what_no_key_can_be(tmp_path):
    for key, default in KEYS.items():
        for value in (None, {1}, b"x", object(), 1j, np.int64(4), [{}], {}, math.nan):
            if value is None and default is None:
                continue
            config, changed = _base("digits"), {key: value}
            if _set(config, changed):
                assert _outcome(config, changed, devices=1, hosts=1, folder=tmp_path) == "refused"


def _config_of(case: str):
    config = _base("digits")
    if case == "renamed":
        config.average_decay = 0.9
    elif case == "misspelled":
        config.optimizer.learning_rat = 0.1
    elif case == "missing":
        del config.mesh.fsdp
    elif case == "no section":
        config.mesh = None
    elif case == "other section":
        config.mesh = {"data": 3}
    elif case == "channels":
        config.model.in_chans = 1
    return config


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("renamed", "config.average_decay: the config has no such key. Nearest: ema_decay."),
        ("misspelled", "config.optimizer.learning_rat: the config has no such key. Nearest: lear"),
        ("missing", "Missing config.mesh.fsdp: start from default_config()"),
        ("no section", "Invalid config.mesh=None: expected the keys data, fsdp, tensor"),
        ("other section", "Missing config.mesh.fsdp"),
        (
            "channels",
            "Invalid config.model.in_chans=1: expected no such key: images are read as RGB",
        ),
    ],
)
def test_other_keys(case, message):
    """A recipe can add and remove keys, which a flag cannot."""
    with pytest.raises(ValueError, match=re.escape(message)):
        task_of(_config_of(case))


FLAG_TEXTS = [
    *("", "None", "none", "True", "1", "0", "-1", "1.5", "1e400", "nan", "inf", "text", "é"),
    *("()", "(1,)", "(1,2)", "('a','b')", "(1,(2,", "((1,2),(3,4))", "{1,2}", "{}", "b'x'"),
    *("1+1", "(0.5,2.0)", "(None,)", "[1,2]", "'", "\\", "-inf", "999999999999", "(1e999,2)"),
]


def _parsed(flag: str):
    """The config of a command line with one more flag; the message where it is refused."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", None, "", lock_config=True, flag_values=values
    )
    argv = ["train.py", "--config=digits", "--config.model.depths=(1,1,1,1)", flag]
    messages = io.StringIO()
    with (
        mock.patch.object(app, "FLAGS", values),
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stderr(messages),
        contextlib.redirect_stdout(messages),
    ):
        try:
            _parse_flags(argv)
        except SystemExit:
            return None, messages.getvalue()
    return config.value, ""


def _check_flags(texts_of, folder, program) -> None:
    outcomes: collections.Counter = collections.Counter()
    for number, key in enumerate(KEYS):
        for text in texts_of(number):
            config, message = _parsed(f"--config.{key}={text}")
            if config is None:
                assert f"config.{key}" in message, message
                outcomes["refused"] += 1
            else:
                options = dict(devices=1, hosts=1, folder=folder, program=program)
                outcomes[_outcome(config, {key: text}, **options)] += 1
    print(dict(outcomes))
    assert min(outcomes["accepted"], outcomes["refused"]) > sum(outcomes.values()) / 20, outcomes


def test_some_texts_as_flags(tmp_path):
    _check_flags(
        lambda number: FLAG_TEXTS[number % 7 :: 11], epath.Path(tmp_path), lambda *unused: None
    )


@pytest.mark.slow
def test_all_texts_as_flags(tmp_path):
    _check_flags(lambda number: FLAG_TEXTS, epath.Path(tmp_path), _KnownPrograms())
