"""What the entry points share: flags in, a result or one sentence out."""

import sys
from collections.abc import Callable

from absl import app, flags, logging


def run(main: Callable[[list[str]], None]) -> None:
    """Runs an entry point: parses its flags, and turns a refusal into a sentence and exit code 1.

    A refusal is a ValueError, ImportError or OSError: wrong input, a missing package or file. The
    library raises them with a message for people. Anything else is a mistake of ours and keeps its
    trace.
    """
    try:
        app.run(lambda argv: _main(main, argv), flags_parser=_parse_flags)
    except KeyboardInterrupt:
        sys.exit(130)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except (KeyError, AttributeError) as error:
        # ml_collections' word for a --config.KEY that the config does not have.
        problem = str(error).strip("'\"").replace("\\n", ". ").replace("\\", "")
        _refuse(f"the config has no such key: {problem}")
    except (ValueError, TypeError, OSError) as error:
        _refuse(str(error))


def _main(main: Callable[[list[str]], None], argv: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells every detail of a save at absl's default level; --verbosity=0 shows it.
        logging.set_verbosity(logging.WARNING)
    try:
        if len(argv) > 1:
            raise ValueError(f"Unexpected argument {argv[1]!r}: flags are written --name=value.")
        main(argv)
    except (ValueError, ImportError, OSError) as error:
        _refuse(str(error))


def _refuse(message: str):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
