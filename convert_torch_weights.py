"""Converts official FasterViT weights to ours, and ours to the official format.

python convert_torch_weights.py --model=NAME --checkpoint=FILE.pth.tar --output=DIR
python convert_torch_weights.py --model=NAME --weights=DIR --to_torch=FILE.pth.tar

The same as `fastervit convert`; see fastervit_jax/commands/convert.py.
"""

from fastervit_jax.commands.convert import command
from fastervit_jax.commands.flags import run

if __name__ == "__main__":
    run(command())
