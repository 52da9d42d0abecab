"""What the entry points share: flags in, a result or one sentence out."""

import sys
from collections.abc import Callable

from absl import app, flags, logging


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs an entry point: parses its flags, and turns a refusal into a sentence and exit code 1.

    A refusal is a ValueError, ImportError or OSError: wrong input, a missing package or file. The
    library raises them with a message for people. Anything else is a mistake of ours and keeps its
    trace.
    """

    def guarded(argv: list[str]) -> int | None:
        if len(argv) > 1:
            raise ValueError(f"Unexpected argument {argv[1]!r}: flags are written --name=value.")
        if not flags.FLAGS["verbosity"].present:
            # Orbax tells every detail of a save at absl's default level; --verbosity=0 shows it.
            logging.set_verbosity(logging.WARNING)
        return main(argv)

    try:
        app.run(_refusing(guarded), flags_parser=_refusing(_parse_flags))
    except KeyboardInterrupt:
        sys.exit(130)


def _parse_flags(argv: list[str]) -> list[str]:
    return app.parse_flags_with_usage(argv)


def _refusing(function: Callable) -> Callable:
    def refusing(argv: list[str]):
        try:
            return function(argv)
        except (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError) as error:
            if function is not _parse_flags and not isinstance(
                error, ValueError | ImportError | OSError
            ):
                raise
            message = str(error).strip("'\"") if isinstance(error, KeyError) else str(error)
            print(f"error: {message}", file=sys.stderr)
            sys.exit(1)

    return refusing
