"""What the commands make of their flags before absl reads them."""

import pytest

from fastervit_jax.commands.flags import _with_path


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
