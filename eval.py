"""Evaluates a FasterViT: eval.py --weights=PATH [--model=NAME] --dataset=SPEC.

The same as `fastervit eval`; see fastervit_jax/commands/eval.py.
"""

from fastervit_jax.commands.eval import command
from fastervit_jax.commands.flags import run

if __name__ == "__main__":
    run(command())
