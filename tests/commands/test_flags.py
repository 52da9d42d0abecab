"""What the commands make of their flags before absl reads them."""

import pytest
from absl import flags

from fastervit_jax.commands.flags import _with_path, define_scales_flag


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--workdir=~/runs/a b", "--workdir=/home/me/runs/a b"),
        ("--config.finetune.weights=~/w", "--config.finetune.weights=/home/me/w"),
        ("--dataset=folder:~/x", "--dataset=folder:~/x"),  # the data set reads it
        ("~/image.png", "~/image.png"),  # shells expand it
        ("--flag", "--flag"),
    ],
)
def test_home_directory(monkeypatch, argument, expected):
    monkeypatch.setenv("HOME", "/home/me")
    assert _with_path(argument) == expected


@pytest.fixture
def scales():
    factors = define_scales_flag(None)
    flags.FLAGS.mark_as_parsed()
    yield factors
    flags.FLAGS.unparse_flags()
    delattr(flags.FLAGS, "scales")


def test_scales(scales):
    assert scales() is None
    flags.FLAGS.scales = ["0.5", "1"]
    assert scales() == [0.5, 1.0]
    flags.FLAGS.scales = ["0.5", "big"]
    with pytest.raises(ValueError, match=r"Invalid --scales: cannot read 'big'\. See --help"):
        scales()
