"""The program `fastervit`: one name for all commands."""

import importlib
import sys

from fastervit_jax.commands.flags import run
from fastervit_jax.version import __version__

COMMANDS = {
    "train": "train a network, or compile its step for a TPU pod",
    "eval": "evaluate weights on a data set",
    "convert": "convert weights from PyTorch and back",
    "predict": "classify images",
    "export": "write a network for another runtime",
    "visualize": "draw what a network attends to",
    "preview": "draw the training images of a recipe",
}
"""What each command is for."""

_TAKES_ARGUMENTS = ("predict", "visualize")


def main() -> None:
    """Runs the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
    elif name == "--version":
        print(f"fastervit-jax {__version__}")
    elif name in COMMANDS:
        module = importlib.import_module(f"fastervit_jax.commands.{name}")
        argv = [f"fastervit {name}", *sys.argv[2:]]
        run(module.command(), argv=argv, arguments=name in _TAKES_ARGUMENTS, help=module.__doc__)
    else:
        sys.exit(f"error: Invalid command {name!r}: expected one of {', '.join(COMMANDS)}.")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {meaning}" for name, meaning in COMMANDS.items()]
    usage = "usage: fastervit COMMAND [--flag=value …]"
    return "\n".join([usage, "", *lines, "", "fastervit COMMAND --help lists a command's flags."])
