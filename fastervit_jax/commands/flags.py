"""What the commands share: flags, results, and errors as one sentence."""

import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from fastervit_jax.data.paths import write_whole
from fastervit_jax.models import FasterViT
from fastervit_jax.runs.config import NEW_NAMES
from fastervit_jax.runs.recipes import recipe_file

_LOST_AFTER = 30
"""Seconds without a heartbeat after which the other processes of a run treat one as lost."""


def run(
    main: Callable[[list[str]], None],
    *,
    argv: list[str] | None = None,
    arguments: bool = False,
    help: str | None = None,
) -> None:
    """Runs a command: parses its flags, and turns a refusal into a sentence and exit code 1.

    A refusal is a ValueError, ImportError or OSError: wrong input, a missing package or file. The
    library raises them with a message for people. Any other exception is a fault of this package
    and keeps its traceback.

    Args:
        main: takes the program's name and, with `arguments`, what is not a flag.
        argv: the program's name and its arguments; default `sys.argv`.
        arguments: whether the command takes arguments that are not flags.
        help: what `--help` prints above the flags; default the main module's docstring.
    """
    argv = _with_new_names(sys.argv if argv is None else argv)
    if {"--help", "-h", "--helpshort", "-?"} & set(argv[1:]):
        print(_help(help or sys.modules["__main__"].__doc__ or ""))
        return
    try:
        app.run(lambda argv: _main(main, argv, arguments), argv=argv, flags_parser=_parse_flags)
    except KeyboardInterrupt:
        sys.exit(130)


_NEW_NAMES = {
    **{f"config.{old}": f"config.{new}" for old, new in NEW_NAMES.items()},
    "use_average": "ema",
    "nouse_average": "noema",
}
"""Flags that have changed their names: the old names are still accepted."""


def _with_new_names(argv: list[str]) -> list[str]:
    """Arguments with the new names of flags."""
    result = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        dashes = name[: len(name) - len(name.lstrip("-"))]
        new = _NEW_NAMES.get(name.lstrip("-")) if dashes else None
        result.append(f"{dashes}{new}{equals}{value}" if new else argument)
    return result


def _help(text: str) -> str:
    """A command's description, then the flags that this package has defined."""
    lines = [text.strip(), "", "Flags:"]
    for module, defined in sorted(flags.FLAGS.flags_by_module_dict().items()):
        if module.startswith("fastervit_jax"):
            for flag in sorted(defined, key=lambda flag: flag.name):
                default = "" if flag.value in (None, []) else f" Default: {flag.value}."
                # absl adds a line of its own to flags that can be repeated.
                meaning = flag.help.split(";\n")[0] + default
                lines += [f"  --{flag.name}", textwrap.indent(textwrap.fill(meaning, 82), " " * 6)]
    return "\n".join(lines)


def define_config_flag() -> flags.FlagHolder:
    """Defines `--config`: a recipe's file, or the name of a recipe that the package brings.

    Every key can be changed by a flag: `--config.optimizer.learning_rate=1e-3`.
    """
    config = config_flags.DEFINE_config_file(
        "config", None, "Recipe: a Python file, or a name such as digits.", lock_config=True
    )
    flags.mark_flag_as_required("config")
    return config


def print_result(result: str, *, file: str | None = None) -> None:
    """Prints a result as the last line of output, and writes it to a file atomically."""
    if file:
        write_whole(file, result + "\n")
    print(result, flush=True)


def define_model_flags() -> Callable[[], dict[str, Any]]:
    """Defines the flags that change a named network.

    Returns:
        A function that returns the options that were set. Call it after the flags are parsed.
    """
    flags.DEFINE_list("resolution", None, "Image size in pixels: SIDE or HEIGHT,WIDTH.")
    flags.DEFINE_list("window_size", None, "Window side of the four stages: a,b,c,d.")
    flags.DEFINE_list(
        "hat", None, "Whether each stage is hierarchical, such as false,false,true,false."
    )
    flags.DEFINE_integer("ct_size", None, "Side of the square of carrier tokens of a window.")
    flags.DEFINE_integer("num_classes", None, "Number of classes of the head; 0 for no head.")

    def options() -> dict[str, Any]:
        names = ("resolution", "window_size", "hat", "ct_size", "num_classes")
        given: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
        for name, kind in (("resolution", int), ("window_size", int), ("hat", _boolean)):
            if given[name] is not None:
                given[name] = tuple(_converted(name, text, kind) for text in given[name])
        if given["resolution"] is not None and len(given["resolution"]) == 1:
            given["resolution"] = given["resolution"][0]
        return {name: value for name, value in given.items() if value is not None}

    return options


def define_scales_flag(default: list[str] | None) -> Callable[[], list[float] | None]:
    """Defines `--scales`, the factors on the image size that segmenters average over.

    Returns:
        A function that returns the factors. Call it after the flags are parsed.
    """
    scales = flags.DEFINE_list(
        "scales", default, "Segmenters: factors on the image size, averaged."
    )

    def factors() -> list[float] | None:
        given = scales.value
        return [_converted("scales", text, float) for text in given] if given else None

    return factors


def define_weights_flags() -> Callable[[], FasterViT]:
    """Defines --model, --weights and the flags that change a named network.

    Returns:
        A function that opens the model. Call it after the flags are parsed.
    """
    model = flags.DEFINE_string(
        "model", None, "Model name. Not needed where the weights contain it."
    )
    weights = flags.DEFINE_string(
        "weights",
        None,
        "A converted directory, an official torch file, or a work directory of fastervit train. "
        "Default: the published weights of --model.",
    )
    options = define_model_flags()

    def open_model() -> FasterViT:
        from fastervit_jax.weights.loading import load_model, open_weights

        path: Any = weights.value
        if path is None:
            if model.value is None:
                raise ValueError("Missing flag: set --model, --weights or both.")
            from fastervit_jax.weights.hub import pretrained_directory

            path = pretrained_directory(model.value, say=_say)
        loaded = load_model(model.value, open_weights(path), options(), progress=True)
        for line in loaded.lines:
            _say(line)
        return loaded.model

    return open_model


def define_decoding_flags(*, exif: str | None) -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines --transparency and --exif, and returns them.

    Args:
        exif: the default of --exif; None where it depends on the weights.
    """
    default = None if exif is None else "drop"
    of_the_run = " Default: that of the run for a work directory, else {}." if exif is None else ""
    return (
        flags.DEFINE_enum(
            "transparency",
            default,
            ["drop", "white", "black"],
            "Transparent pixels: drop shows the color that they hide, as timm does; white and "
            "black put the image on that background." + of_the_run.format("drop"),
        ),
        flags.DEFINE_enum(
            "exif",
            exif,
            ["ignore", "apply"],
            "EXIF orientation of photographs: ignore it, as timm does, or apply it, which turns "
            "them upright." + of_the_run.format("ignore"),
        ),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def define_host_flags() -> Callable[[], None]:
    """Defines the flags that connect several hosts.

    TPU pods, SLURM, GKE and Open MPI need no flag: JAX finds the other hosts.

    Returns:
        A function that joins the hosts. Call it before any other function of JAX. On a single host
        it does nothing.
    """
    flags.DEFINE_string(
        "coordinator",
        None,
        "Address of the first of several hosts, HOST:PORT. Not needed on TPU pods, SLURM, GKE and "
        "Open MPI. auto: fail if JAX does not find the hosts by itself.",
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0, with --coordinator.")

    def join() -> None:
        coordinator = flags.FLAGS.coordinator
        numbers = (flags.FLAGS.num_processes, flags.FLAGS.process_id)
        if coordinator is None:
            if numbers != (None, None):
                raise ValueError("Missing --coordinator: --num_processes and --process_id need it.")
            _join_cluster_if_any()
            _warn_of_idle_gpu()
            return
        if (None in numbers) != (coordinator == "auto"):
            raise ValueError(
                "Invalid flags: --coordinator=HOST:PORT needs --num_processes and --process_id; "
                "--coordinator=auto takes neither."
            )
        import jax

        address = None if coordinator == "auto" else coordinator
        jax.distributed.initialize(address, *numbers, heartbeat_timeout_seconds=_LOST_AFTER)
        _warn_of_idle_gpu()

    return join


def define_cache_flag() -> Callable[[], None]:
    """Defines the flag for a compilation cache, and returns the function that applies it."""
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Directory, local or remote, for compiled programs. A restart then compiles nothing.",
    )

    def keep_programs() -> None:
        if flags.FLAGS.compilation_cache:
            import jax

            jax.config.update("jax_compilation_cache_dir", flags.FLAGS.compilation_cache)

    return keep_programs


def _join_cluster_if_any() -> None:
    """Joins the other hosts where JAX detects a cluster."""
    import jax

    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_LOST_AFTER)
    except ValueError as error:
        # JAX's message where it detects no cluster.
        if "coordinator_address should be defined" not in str(error):
            raise


def _warn_of_idle_gpu() -> None:
    from fastervit_jax.parallel.idle_gpu import why_idle

    reason = why_idle()
    if reason:
        print(f"warning: {reason}", file=sys.stderr, flush=True)


def _converted(flag: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"Invalid --{flag}: cannot read {text!r}. See --help.") from None


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage([_with_path(argument) for argument in argv])
    except (KeyError, AttributeError) as error:
        # ml_collections' error for a --config.KEY that the config does not have.
        problem = str(error).strip("'\"").replace("\\n", ". ").replace("\\", "")
        _refuse(f"Invalid flag: the config has no such key. {problem}")
    except (ValueError, TypeError, OSError) as error:
        _refuse(str(error))


def _with_path(argument: str) -> str:
    """`--config=NAME` with the file that the name stands for, and other flags without `~`.

    Shells do not expand the `~` of `--workdir=~/run`.
    """
    name, equals, value = argument.partition("=")
    if not name.startswith("-") or not equals:
        return argument
    value = os.path.expanduser(value)
    return f"{name}={recipe_file(value) if name.lstrip('-') == 'config' else value}"


def _main(main: Callable[[list[str]], None], argv: list[str], arguments: bool) -> None:
    if not flags.FLAGS["verbosity"].present:
        # Orbax logs every detail of a save at absl's default level; --verbosity=0 shows it.
        logging.set_verbosity(logging.WARNING)
    try:
        if len(argv) > 1 and not arguments:
            raise ValueError(f"Invalid argument {argv[1]!r}: expected flags, --name=value.")
        main(argv)
    except (ValueError, ImportError, OSError) as error:
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
