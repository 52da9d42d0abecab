"""Reads files that are damaged at random, and checks how every reader answers.

    python -m tests.faults.damaged_files --images=10000 --others=1000 --workdir=DIR --seed=0

A damaged file must be read, or refused by the error that its reader documents. Nothing may hang
(`LIMIT` seconds), need more than `MEMORY` bytes, end the interpreter, run what the file says, or
pass for the original where there is a checksum. The files are made from the seed; none is stored.
`--only=KIND:NUMBER` repeats one. Another call adds its record to the same file.
"""

import argparse
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.faults.damage import damaged, damaged_json
from tests.small.run import ROOT

LIMIT = 30
"""Seconds that reading one file may take."""

MEMORY = 4 * 2**30
"""Bytes of address space that the reading process may take beyond what it has at the start."""

IMAGES = ("jpeg", "png", "webp", "gif", "tiff", "bmp")
OTHERS = (
    "loader",
    "mask",
    "coco",
    "config",
    "metadata",
    "converted",
    "safetensors",
    "torch_zip",
    "torch_pickle",
    "orbax",
)

Check = Callable[[random.Random, Path], bool]
"""Damages one file, below a directory, and reads it; whether it could be read. Raises where the
answer is wrong."""


class Wrong(Exception):
    """A reader's answer is not what it documents."""


# ---- the parent: starts children, and another one where a child is lost -------------------------


def main() -> None:
    """Reads as many files as the flags say."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, default=1000, help="damaged images")
    arguments.add_argument("--others", type=int, default=300, help="other damaged files")
    arguments.add_argument("--workdir", type=Path, required=True, help="for temporary files")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--record", type=Path, help="JSON file; default: in the directory")
    arguments.add_argument("--only", help="KIND:NUMBER")
    arguments.add_argument("--child", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    if options.child:
        _child(options.child, options.seed, options.workdir)
        return
    if options.only:
        kind, _, number = options.only.partition(":")
        work = {kind: range(int(number), int(number) + 1)}
    else:
        work = shares(options.images, options.others)
    record = read_all(work, options.seed, options.workdir)
    path = options.record or options.workdir / "damaged_files.json"
    earlier = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*earlier, record], indent=2) + "\n")
    print(json.dumps(record, indent=2))


def shares(images: int, others: int) -> dict[str, range]:
    """Numbers of files of each kind."""
    return {
        **{kind: range(-(-images // len(IMAGES))) for kind in IMAGES},
        **{kind: range(-(-others // len(OTHERS))) for kind in OTHERS},
    }


def read_all(work: dict[str, range], seed: int, workdir: Path) -> dict[str, Any]:
    """Reads damaged files of these kinds and numbers; returns the record."""
    from fastervit_jax.runs.resume_check import code_version

    begin = time.monotonic()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in work}
    wrong: list[dict[str, Any]] = []
    peak = 0.0
    waiting = [(kind, numbers.start, numbers.stop) for kind, numbers in work.items()]
    while waiting:
        task = ",".join(f"{kind}:{first}:{last}" for kind, first, last in waiting)
        lost = None
        for line in _lines(task, seed, workdir):
            kind, number, answer = line["kind"], line["number"], line["answer"]
            peak = max(peak, line.get("megabytes", 0))
            if answer in ("read", "refused"):
                counts[kind][answer] += 1
            else:
                counts[kind]["wrong"] += 1
                wrong.append({key: line[key] for key in ("kind", "number", "answer")})
                print(f"{kind}:{number}: {answer}", file=sys.stderr, flush=True)
            if line.get("lost"):
                lost = kind, number
        if lost is None:
            break
        kinds = [kind for kind, *_ in waiting]
        waiting = waiting[kinds.index(lost[0]) :]
        waiting[0] = (lost[0], lost[1] + 1, waiting[0][2])
    by_kind = {
        kind: {"files": sum(count.values()), **count} for kind, count in counts.items() if count
    }
    return {
        "command": f"python -m tests.faults.damaged_files --seed={seed} --workdir=DIR",
        "images": sum(by_kind[kind]["files"] for kind in IMAGES if kind in by_kind),
        "others": sum(by_kind[kind]["files"] for kind in OTHERS if kind in by_kind),
        "by_kind": by_kind,
        "wrong": wrong,
        "limit_seconds": LIMIT,
        "limit_mebibytes": MEMORY >> 20,
        "most_mebibytes": round(peak),
        "seconds": round(time.monotonic() - begin),
        "versions": {**code_version(), "pillow": Image.__version__},
    }


def _lines(task: str, seed: int, workdir: Path) -> Iterator[dict[str, Any]]:
    """What a child says of each file; at last, which file it was lost over."""
    command = [sys.executable, "-m", "tests.faults.damaged_files", f"--child={task}"]
    with (workdir / "child.log").open("a") as log:
        child = subprocess.Popen(
            [*command, f"--seed={seed}", f"--workdir={workdir.resolve()}"],
            cwd=ROOT,
            # Without a cache of programs, which lies elsewhere and is written to.
            env={
                **{name: value for name, value in os.environ.items() if "CACHE" not in name},
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "",
                "TMPDIR": str(workdir.resolve()),  # where a refusal leaves what it has no room for
            },
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert child.stdout is not None
    current: dict[str, Any] = {}
    rest = b""
    try:
        while True:
            # Importing and making the files takes longer than reading one.
            ready = select.select([child.stdout], [], [], LIMIT if current else 20 * LIMIT)[0]
            part = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
            if not part:
                break
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                content = json.loads(line)
                if content.get("answer"):
                    current = {}
                    yield content
                elif "kind" in content:
                    current = content
        if current and not ready:
            yield {**current, "answer": f"hangs: more than {LIMIT} s", "lost": True}
        elif current:
            code = child.wait()
            yield {**current, "answer": f"ends the interpreter: exit code {code}", "lost": True}
        elif child.wait() != 0:
            raise RuntimeError(f"A child failed: see {workdir / 'child.log'}")
    finally:
        child.kill()
        child.wait()


# ---- the child: makes the files and reads them --------------------------------------------------


def _child(task: str, seed: int, workdir: Path) -> None:
    place = workdir / "files"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    checks: dict[str, Check] = {}
    parts = [part.split(":") for part in task.split(",")]
    for kind, *_ in parts:
        checks[kind] = _MAKERS[kind](workdir / kind) if kind in _MAKERS else _image_check(kind)
    obeyed = _watch(workdir)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, first, last in parts:
        for number in range(int(first), int(last)):
            _say(kind=kind, number=number)
            obeyed.clear()
            try:
                answer = (
                    "read"
                    if checks[kind](random.Random(f"{seed} {kind} {number}"), place)
                    else "refused"
                )
            except Wrong as error:
                answer = str(error)
            except MemoryError:
                answer = "needs too much memory"
            except BaseException as error:
                traceback.print_exc()
                answer = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if obeyed:
                answer = f"obeys the file: {obeyed[0]}"
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            _say(kind=kind, number=number, answer=answer, megabytes=(now - before) / 1024)


def _say(**content: Any) -> None:
    os.write(1, (json.dumps(content) + "\n").encode())


_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.mkdir")
_FORBIDDEN += ("os.rename", "os.remove", "os.symlink", "os.fork", "socket.connect", "shutil.rmtree")


def _watch(workdir: Path) -> list[str]:
    """Notes what the interpreter does that no reader has a reason to do."""
    noted: list[str] = []
    inside = str(workdir.resolve())

    def hook(event: str, arguments: tuple) -> None:
        # `shutil.rmtree` of the checks themselves removes by name within an open directory.
        relative = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        if event in _FORBIDDEN and not relative and inside not in str(arguments):
            noted.append(f"{event} {str(arguments)[:200]}")
        elif event == "open" and set("wax+") & set(str(arguments[1])):
            noted.extend([f"writes {arguments[0]}"] * (inside not in str(arguments[0])))

    sys.addaudithook(hook)
    return noted


def _refused(read: Callable[[], Any], *errors: type[Exception]) -> bool:
    """Whether reading is refused by one of these errors, with a sentence."""
    try:
        read()
    except errors as error:
        if not str(error).strip():
            raise Wrong(f"{type(error).__name__} says nothing") from error
        return True
    return False


# Images


def originals(kind: str) -> list[bytes]:
    """Whole image files of a format, of all its modes."""
    size = (48, 40)
    numbers = np.random.default_rng(0)
    noise = numbers.integers(0, 256, (size[1], size[0], 4), np.uint8)
    noise[8:24, 8:40] = 200
    rgba = Image.fromarray(noise, "RGBA")
    rgb, gray, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("RGB").quantize(16)
    deep = Image.fromarray(numbers.integers(0, 65536, size[::-1], np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 50
    frames = dict(save_all=True, append_images=[rgb.rotate(90, expand=False)])
    made: list[tuple[Image.Image, dict[str, Any]]] = {
        "jpeg": [
            (rgb, dict(quality=80, exif=exif)),
            (rgb, dict(progressive=True, icc_profile=bytes(200))),
            (gray, {}),
            (rgb.convert("CMYK"), {}),
            (rgb, dict(subsampling=0, restart_marker_blocks=2)),
        ],
        "png": [
            (rgb, {}),
            (rgba, dict(exif=exif)),
            (palette, dict(transparency=3, bits=4)),
            (gray.convert("1"), {}),
            (deep, {}),
            (rgb, frames),
        ],
        "webp": [
            (rgb, dict(exif=exif)),
            (rgba, dict(lossless=True)),
            (rgba, dict(quality=30)),
            (rgb, frames),
        ],
        "gif": [
            (palette, {}),
            (palette, dict(transparency=0, interlace=1, comment=b"a comment")),
            (rgb, dict(save_all=True, append_images=[gray.convert("RGB")], loop=0)),
        ],
        "tiff": [
            (rgb, dict(compression=None)),
            (rgb, dict(compression="tiff_lzw", exif=exif)),
            (rgba, dict(compression="tiff_adobe_deflate")),
            (rgb, dict(compression="jpeg")),
            (gray.convert("1"), dict(compression="group4")),
            (deep, dict(compression="packbits")),
            (palette, {}),
            (rgb, dict(save_all=True, append_images=[rgb])),
        ],
        "bmp": [(rgb, {}), (gray, {}), (palette, {}), (gray.convert("1"), {}), (rgba, {})],
    }[kind]
    return [_encoded(image, kind, **options) for image, options in made]


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind.upper(), **options)
    return buffer.getvalue()


def _image_check(kind: str) -> Check:
    from fastervit_jax.augmentation.host import TrainTransform
    from fastervit_jax.data import DamagedImageError, Decoding, EvalTransform

    files = originals(kind)
    variants = [Decoding(), Decoding("white", "apply"), Decoding("black", "ignore")]
    training = [TrainTransform(32, decoding=each) for each in variants]
    evaluation = [EvalTransform(32, 0.9, "center", each) for each in variants]

    def check(rng: random.Random, place: Path) -> bool:
        del place
        content = damaged(rng.choice(files), rng)
        number = rng.randrange(len(variants))
        pixels: list[np.ndarray] = []
        refused = _refused(lambda: pixels.append(evaluation[number](content)), DamagedImageError)
        _refused(
            lambda: pixels.append(training[number](content, np.random.default_rng(0))),
            DamagedImageError,
        )
        if any(each.shape != (32, 32, 3) or each.dtype != np.uint8 for each in pixels):
            raise Wrong("an image of another shape or type")
        return not refused

    return check


def _large(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.width * image.height > 10**6
    except Exception:
        return False


def _loader_check(place: Path) -> Check:
    """Folders of whole and damaged images: training goes on and names them, evaluation stops."""
    from fastervit_jax.augmentation.host import TrainTransform
    from fastervit_jax.data import (
        DamagedImageError,
        EvalTransform,
        TooMuchDamageError,
        eval_batches,
        open_source,
        train_batches,
    )

    files = [(kind, content) for kind in IMAGES for content in originals(kind)]
    view = EvalTransform(16, 1.0, "squash")

    def check(rng: random.Random, folder: Path) -> bool:
        shutil.rmtree(folder / "set", ignore_errors=True)
        refused = []
        for number in range(12):
            kind, content = rng.choice(files)
            if number % 3 == 0:
                # A file that claims 170 million pixels takes seconds, and is drawn many times here.
                content = next(each for _ in range(99) if not _large(each := damaged(content, rng)))
            path = folder / "set" / f"class{number % 2}" / f"{number}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if _refused(lambda content=content: view(content), DamagedImageError):
                refused.append(path.name)
        source = open_source(f"folder:{folder / 'set'}")
        options: Any = dict(batch_size=6, seed=rng.randrange(100), num_steps=4)
        loader = train_batches(source, TrainTransform(16), **options, max_damaged_share=1.0)
        batches = list(loader)
        if len(batches) != 4 or any(batch["image"].shape != (6, 16, 16, 3) for batch in batches):
            raise Wrong("training does not go on")
        named = {Path(key).name for key in loader.damage.reasons}
        if named != set(refused):
            raise Wrong(f"training names {sorted(named)}, expected {sorted(refused)}")
        none = train_batches(source, TrainTransform(16), **options, max_damaged_share=0.0)
        if _refused(lambda: list(none), TooMuchDamageError) != bool(refused):
            raise Wrong("training does not stop at its limit")
        said = ""
        try:
            list(eval_batches(source, view, batch_size=6))
        except DamagedImageError as error:
            said = str(error)
        if bool(said) != bool(refused) or (said and not any(name in said for name in refused)):
            raise Wrong(f"evaluation says {said!r} of {refused}")
        return not refused

    return check


def _mask_check(place: Path) -> Check:
    """Masks beside a whole image."""
    from fastervit_jax.data import DamagedImageError
    from fastervit_jax.data.sources.masks import MaskedExample, MaskedSource

    classes = np.random.default_rng(0).integers(0, 4, (40, 48), np.uint8)
    mask = Image.fromarray(classes)
    palette = mask.convert("P")
    palette.putpalette(list(range(256)) * 3)
    files = [
        *(_encoded(each, kind) for each in (mask, palette) for kind in ("png", "bmp", "gif")),
        _encoded(Image.fromarray(classes.astype(np.uint16)), "png"),
        _encoded(Image.fromarray(classes.astype(np.int32)), "tiff"),
        *(_encoded(mask, "tiff", compression=each) for each in ("tiff_lzw", "packbits")),
    ]
    image = originals("png")[0]

    class Source(MaskedSource):
        class_names = ("a", "b", "c", "d")

    def check(rng: random.Random, folder: Path) -> bool:
        del folder
        example = MaskedExample(image, damaged(rng.choice(files), rng), "picture 7")

        def read() -> None:
            _, found = Source().read(example)
            if found.shape != (40, 48) or found.dtype != np.uint8:
                raise Wrong("a mask of another shape or type")
            if not np.isin(found, [0, 1, 2, 3, 255]).all():
                raise Wrong("a mask of other classes")

        return not _refused(read, DamagedImageError, ValueError)

    return check


def _coco_check(place: Path) -> Check:
    """Annotations of boxes, and the batches that are made with them."""
    from fastervit_jax.augmentation.detection import ResizeSettings
    from fastervit_jax.data import DamagedImageError
    from fastervit_jax.data.sources.coco import CocoSource
    from fastervit_jax.detection.batches import BatchSettings, eval_batches, train_batches

    images = place / "images"
    images.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "info": {"year": 2017},
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    for number in range(4):
        (images / f"{number}.png").write_bytes(originals("png")[0])
        content["images"].append(
            {"id": 10 + number, "file_name": f"{number}.png", "width": 48, "height": 40}
        )
        for box in range(3):
            content["annotations"].append(
                {
                    "id": 3 * number + box,
                    "image_id": 10 + number,
                    "category_id": (3, 7)[box % 2],
                    "bbox": [box, 2.5, 10, 20],
                    "area": 200.0,
                    "iscrowd": 0,
                }
            )
    whole = json.dumps(content).encode()
    resize = ResizeSettings(
        short_sides=(32,),
        long_side=64,
        crop_probability=0.0,
        crop_short_sides=(32,),
        crop_sides=(16, 32),
    )
    settings = BatchSettings(buckets=((64, 64),), max_boxes=5, resize=resize, eval_short_side=32)

    def check(rng: random.Random, folder: Path) -> bool:
        path = folder / "annotations.json"
        path.write_bytes(damaged_json(whole, rng))

        def read() -> None:
            source = CocoSource(images, path)
            for number in range(len(source)):
                example = source[number]
                if not np.isfinite(example.boxes).all():
                    raise Wrong("a box that is not finite")
            if len(source) >= 2:
                options: Any = dict(batch_size=2, num_workers=0)
                list(train_batches(source, settings, seed=0, num_steps=2, **options))
                list(eval_batches(source, settings, **options))

        return not _refused(read, DamagedImageError, ValueError)

    return check


# Weights and runs


def _model(seed: int = 0):
    from tests.small.weights import random_model

    return random_model(seed=seed, depths=(1, 1, 1, 1), dim=8, num_heads=(1, 1, 2, 2))


def _workdir(place: Path) -> Path:
    """A work directory with a checkpoint of a small network."""
    import optax

    from fastervit_jax.models.pure_model import arrays_of
    from fastervit_jax.runs.checkpoints import Checkpoints
    from fastervit_jax.runs.config import default_config
    from fastervit_jax.runs.state import new_state
    from fastervit_jax.runs.workdir import save_config
    from tests.small.weights import SMALL

    run = place / "run"
    shutil.rmtree(run, ignore_errors=True)
    config = default_config()
    config.model.name = "faster_vit_3_224"
    changes = {**SMALL, "depths": (1, 1, 1, 1), "dim": 8, "num_heads": (1, 1, 2, 2)}
    for name, value in changes.items():
        config.model[name] = value
    model = _model()
    checkpoints = Checkpoints(run)
    names = [f"class {number}" for number in range(10)]
    checkpoints.save(4, new_state(*arrays_of(model), optax.adam(0.1)), {"class_names": names})
    checkpoints.close()
    from etils import epath

    save_config(config, epath.Path(run))
    return run


def _config_check(place: Path) -> Check:
    """`config.json` of a work directory, and what it makes of its checkpoint."""
    from fastervit_jax.runs.config_checks import check_config
    from fastervit_jax.runs.workdir import load_config
    from fastervit_jax.weights.loading import open_weights

    run = _workdir(place)
    whole = (run / "config.json").read_bytes()

    def check(rng: random.Random, folder: Path) -> bool:
        del folder
        (run / "config.json").write_bytes(damaged_json(whole, rng))
        refused = _refused(lambda: open_weights(run), ValueError)
        _refused(lambda: check_config(load_config(run), batch_shards=1), ValueError)
        return not refused

    return check


def _orbax_check(place: Path) -> Check:
    """A file of a checkpoint: damaged, empty, missing, or another one in its place."""
    import jax
    import jax.numpy as jnp
    import optax

    from fastervit_jax.runs.checkpoints import Checkpoints, DamagedCheckpointError
    from fastervit_jax.runs.state import new_state

    params = {"a.kernel": jnp.arange(200.0).reshape(4, 50), "a.bias": jnp.ones(5)}
    state = new_state(params, {"norm.mean": jnp.zeros(3)}, optax.adam(0.1))
    shutil.rmtree(place, ignore_errors=True)
    checkpoints = Checkpoints(place / "whole")
    checkpoints.save(4, state, {"class_names": ["cat"]})
    checkpoints.close()
    names = [
        path.relative_to(place / "whole")
        for path in sorted((place / "whole" / "checkpoints").rglob("*"))
        if path.is_file()
    ]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), state
    )

    def check(rng: random.Random, folder: Path) -> bool:
        del folder
        run = place / "damaged"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(place / "whole", run)
        path = run / rng.choice(names)
        way = rng.random()
        if way < 0.1:
            path.unlink()
        elif way < 0.2:
            path.write_bytes((place / "whole" / rng.choice(names)).read_bytes())
        elif path.suffix == "" and path.read_bytes()[:1] == b"{":
            path.write_bytes(damaged_json(path.read_bytes(), rng))
        elif path.stat().st_size:
            path.write_bytes(damaged(path.read_bytes(), rng))
        else:
            path.write_bytes(rng.randbytes(50))
        found: list = []

        def read() -> None:
            opened = Checkpoints(run, read_only=True)
            try:
                found.append(opened.restore_newest(shapes, lambda step, about: None))
            finally:
                opened.close()

        refused = _refused(read, DamagedCheckpointError, ValueError)
        if not refused:
            if found[0] is None:
                raise Wrong("the checkpoint is not seen")
            same = jax.tree.map(np.array_equal, found[0][1], state)
            if not all(jax.tree.leaves(same)):
                raise Wrong("another state passes for the one that was saved")
        return not refused

    return check


def _converted_check(place: Path, file: str) -> Check:
    """A converted directory; `file` is the one that is damaged."""
    from fastervit_jax.weights.loading import load_model, open_weights, save_model
    from tests.small.weights import arrays

    model = _model()
    names = [f"class {number}" for number in range(10)]
    save_model(model, place / "weights", class_names=names, overwrite=True)
    path = place / "weights" / file
    whole, original = path.read_bytes(), arrays(model)

    def check(rng: random.Random, folder: Path) -> bool:
        del folder
        damage = damaged_json if file.endswith(".json") else damaged
        path.write_bytes(damage(whole, rng))
        found: list = []
        refused = _refused(
            lambda: found.append(load_model(None, open_weights(place / "weights"), {}).model),
            ValueError,
        )
        if not refused:
            for name, array in arrays(found[0]).items():
                if not np.array_equal(array, original[name]):
                    raise Wrong(f"another {name} passes for the one that was saved")
        return not refused

    return check


class _Payload:
    """Unpickled, it runs a program."""

    def __reduce__(self):
        return os.system, ("true",)


def _official_check(place: Path, kind: str) -> Check:
    """An official file: safetensors, torch's zip or its older pickle."""
    from safetensors.numpy import save_file

    from fastervit_jax.weights.torch_files import read_torch_checkpoint

    place.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    tensors = {
        "patch_embed.conv_down.0.weight": numbers.standard_normal((8, 3, 3, 3)),
        "head.weight": numbers.standard_normal((10, 8)),
        "head.bias": numbers.standard_normal(10),
    }
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    path = place / "whole"
    originals = []
    if kind == "safetensors":
        save_file(tensors, path)
        originals.append(path.read_bytes())
    else:
        import torch

        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        content = {"state_dict": state, "epoch": 3, "arch": "x", "list": [1, {"lr": 0.1}]}
        for more in ({}, {"args": argparse.Namespace(lr=0.1)}, {"args": _Payload()}):
            zipped = kind == "torch_zip"
            torch.save({**content, **more}, path, _use_new_zipfile_serialization=zipped)
            originals.append(path.read_bytes())

    def check(rng: random.Random, folder: Path) -> bool:
        # A new name each time: memory that is mapped from a file must not change.
        for old in folder.glob("official*"):
            old.unlink()
        file = folder / f"official{rng.randrange(10**9)}.pth"
        file.write_bytes(damaged(rng.choice(originals), rng))

        def read() -> None:
            checkpoint = read_torch_checkpoint(file)
            for name, tensor in checkpoint.tensors.items():
                array = tensor.read()
                if array.shape != tensor.shape or array.dtype != np.float32:
                    raise Wrong(f"{name} has another shape or type")

        return not _refused(read, ValueError)

    return check


_MAKERS: dict[str, Callable[[Path], Check]] = {
    "loader": _loader_check,
    "mask": _mask_check,
    "coco": _coco_check,
    "config": _config_check,
    "orbax": _orbax_check,
    "metadata": lambda place: _converted_check(place, "metadata.json"),
    "converted": lambda place: _converted_check(place, "weights.safetensors"),
    **{
        kind: (lambda place, kind=kind: _official_check(place, kind))
        for kind in ("safetensors", "torch_zip", "torch_pickle")
    },
}


BAD: dict[str, Callable[[], Any]] = {
    "obeys": lambda: os.system("true"),
    "raises": lambda: [].pop(),
    "grows": lambda: bytearray(2 * MEMORY),
    "hangs": lambda: time.sleep(1000),
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
}
"""Readers that do what none may, for the test of this script."""

_MAKERS |= {
    kind: (lambda place, act=act: lambda rng, folder: bool(act())) for kind, act in BAD.items()
}


if __name__ == "__main__":
    main()
