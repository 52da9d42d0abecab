"""What the entry points share: flags in, a result or one sentence out."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from fastervit_jax.data.paths import write_whole

_LOST_AFTER = 30
"""Seconds without a sign of life after which the other processes of a run give one up."""


def run(main: Callable[[list[str]], None], *, arguments: bool = False) -> None:
    """Runs an entry point: parses its flags, and turns a refusal into a sentence and exit code 1.

    `main` receives the program's name and, where it takes `arguments`, what is no flag.

    A refusal is a ValueError, ImportError or OSError: wrong input, a missing package or file. The
    library raises them with a message for people. Anything else is a mistake of ours and keeps its
    trace.
    """
    try:
        app.run(lambda argv: _main(main, argv, arguments), flags_parser=_parse_flags)
    except KeyboardInterrupt:
        sys.exit(130)


def print_result(result: str, *, file: str | None = None) -> None:
    """Prints a result as the last line, and writes it to a file: whole, or not at all."""
    if file:
        write_whole(file, result + "\n")
    print(result, flush=True)


def define_model_flags() -> Callable[[], dict[str, Any]]:
    """Defines the flags that change a named network.

    Returns:
        A function that gives the options of the flags that were set, once they are parsed.
    """
    flags.DEFINE_list("resolution", None, "Image size in pixels: SIDE, or HEIGHT,WIDTH.")
    flags.DEFINE_list("window_size", None, "Side of the windows of the four stages: a,b,c,d.")
    flags.DEFINE_list("hat", None, "Which stages are hierarchical, such as false,false,true,false.")
    flags.DEFINE_integer("ct_size", None, "Side of a window's square of carrier tokens.")
    flags.DEFINE_integer("num_classes", None, "Classes of the head; 0 for none.")

    def options() -> dict[str, Any]:
        names = ("resolution", "window_size", "hat", "ct_size", "num_classes")
        given = {name: flags.FLAGS[name].value for name in names}
        for name, kind in (("resolution", int), ("window_size", int), ("hat", _boolean)):
            if given[name] is not None:
                given[name] = tuple(_converted(name, text, kind) for text in given[name])
        if given["resolution"] is not None and len(given["resolution"]) == 1:
            given["resolution"] = given["resolution"][0]
        return {name: value for name, value in given.items() if value is not None}

    return options


def define_host_flags() -> Callable[[], None]:
    """Defines the flags with which several hosts find each other.

    On TPU pods, under SLURM, in GKE and under Open MPI none is needed: JAX finds the others.

    Returns:
        A function that joins them, to be called before anything else of JAX; for a host on its own
        it does nothing.
    """
    flags.DEFINE_string(
        "coordinator",
        None,
        "With several hosts, where the first one listens: HOST:PORT. Not needed where JAX finds it "
        "by itself (TPU pods, SLURM, GKE, Open MPI); auto insists that it does.",
    )
    flags.DEFINE_integer("num_processes", None, "How many processes, with --coordinator=HOST:PORT.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; likewise.")

    def join() -> None:
        coordinator = flags.FLAGS.coordinator
        numbers = (flags.FLAGS.num_processes, flags.FLAGS.process_id)
        if coordinator is None:
            if numbers != (None, None):
                raise ValueError("--num_processes and --process_id need --coordinator.")
            _join_cluster_if_any()
            return
        if (None in numbers) != (coordinator == "auto"):
            raise ValueError(
                "--coordinator=HOST:PORT needs --num_processes and --process_id; "
                "--coordinator=auto takes neither."
            )
        import jax

        address = None if coordinator == "auto" else coordinator
        jax.distributed.initialize(address, *numbers, heartbeat_timeout_seconds=_LOST_AFTER)

    return join


def define_cache_flag() -> Callable[[], None]:
    """Defines the flag that keeps compiled programs, and returns the function that obeys it."""
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Directory, local or remote, that keeps compiled programs: a restart need not compile.",
    )

    def keep_programs() -> None:
        if flags.FLAGS.compilation_cache:
            import jax

            jax.config.update("jax_compilation_cache_dir", flags.FLAGS.compilation_cache)

    return keep_programs


def _join_cluster_if_any() -> None:
    """Joins the other hosts where JAX recognises a cluster."""
    import jax

    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_LOST_AFTER)
    except ValueError as error:
        # JAX's word where it recognises none.
        if "coordinator_address should be defined" not in str(error):
            raise


def _converted(flag: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"--{flag}: {text!r} cannot be read; see --helpshort.") from None


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except (KeyError, AttributeError) as error:
        # ml_collections' word for a --config.KEY that the config does not have.
        problem = str(error).strip("'\"").replace("\\n", ". ").replace("\\", "")
        _refuse(f"the config has no such key: {problem}")
    except (ValueError, TypeError, OSError) as error:
        _refuse(str(error))


def _main(main: Callable[[list[str]], None], argv: list[str], arguments: bool) -> None:
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells every detail of a save at absl's default level; --verbosity=0 shows it.
        logging.set_verbosity(logging.WARNING)
    try:
        if len(argv) > 1 and not arguments:
            raise ValueError(f"Unexpected argument {argv[1]!r}: flags are written --name=value.")
        main(argv)
    except (ValueError, ImportError, OSError) as error:
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
