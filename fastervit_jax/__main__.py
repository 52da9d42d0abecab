"""`python -m fastervit_jax COMMAND` is `fastervit COMMAND`."""

from fastervit_jax.commands.main import main

if __name__ == "__main__":
    main()
