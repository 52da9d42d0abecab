"""Folders of images: what is found, in which order, and what is said about a wrong one."""

import os
import pickle
import shutil

import numpy as np
import pytest
from etils import epath

from fastervit_jax.data import check_same_classes, open_source
from tests.data.numbered import numbered_png


def make_folder(root, files):
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbered_png(number))
    return f"folder:{root}"


def test_order_labels_and_keys(tmp_path):
    names = ["b/2.JPEG", "a/deep/er/1.png", "a/0.WebP", "B/x.jpg", "b/notes.txt", "a/.hidden.png"]
    source = open_source(make_folder(tmp_path, names))
    assert source.class_names == ("a", "B", "b") and source.num_classes == 3
    keys = [source[i].key.removeprefix(f"{tmp_path}/") for i in range(len(source))]
    assert keys == ["a/0.WebP", "a/deep/er/1.png", "B/x.jpg", "b/2.JPEG"]
    assert [source[i].label for i in range(len(source))] == [0, 0, 1, 2]
    assert source[0].encoded == numbered_png(2)
    with pytest.raises(IndexError):
        source[4]
    with pytest.raises(IndexError):
        source[-1]


def test_names_that_are_no_utf8_and_pickling(tmp_path):
    make_folder(tmp_path, ["a/ü ñ.png", "b/1.png"])
    (tmp_path / "a" / "ü ñ.png").rename(tmp_path / "a" / "\udcff.png")
    source = pickle.loads(pickle.dumps(open_source(f"folder:{tmp_path}")))
    assert source[0].encoded == numbered_png(0) and source[1].encoded == numbered_png(1)


def test_symbolic_links_are_followed(tmp_path):
    make_folder(tmp_path / "real", ["x/0.png", "x/1.png"])
    root = tmp_path / "linked"
    (root / "b").mkdir(parents=True)
    (root / "a").symlink_to(tmp_path / "real" / "x")
    (root / "b" / "one.png").symlink_to(tmp_path / "real" / "x" / "1.png")
    source = open_source(f"folder:{root}")
    assert [source[i].encoded for i in range(3)] == [numbered_png(n) for n in (0, 1, 1)]
    assert [source[i].label for i in range(3)] == [0, 0, 1]


def test_remote_folders_are_listed_through_epath(tmp_path):
    """The listing of `gs://…`, served from a local folder."""
    make_folder(tmp_path, ["b/2.JPEG", "a/deep/1.png", "a/0.png", "a/.x.png", "stray.png"])

    def local(path):
        assert str(path).startswith("gs://bucket")
        return str(path).replace("gs://bucket", str(tmp_path))

    with epath.testing.mock_epath(
        isdir=lambda _, path: os.path.isdir(local(path)),
        listdir=lambda _, path: os.listdir(local(path)),
        open=lambda _, path, mode="r", **options: open(local(path), mode, **options),
    ):
        source = open_source("folder:gs://bucket")
        assert source.class_names == ("a", "b")
        keys = [source[i].key for i in range(len(source))]
        assert keys == [f"gs://bucket/{p}" for p in ("a/0.png", "a/deep/1.png", "b/2.JPEG")]
        assert source[1].encoded == numbered_png(1)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda root: shutil.rmtree(root), "Folder not found: .* Correct the path"),
        (lambda root: None, "No class folders in"),
        (lambda root: (root / "photo.png").write_bytes(b"x"), "No class folders in"),
        (
            lambda root: (root / "a").mkdir(),
            "class folder .*/a contains no images .* remove the folder",
        ),
        (lambda root: make_folder(root, ["train/a/0.png", "val/a/0.png"]), "look like splits"),
        (
            lambda root: (make_folder(root, ["a/0.png"]), (root / "a/1.png").symlink_to("gone")),
            "a/1.png is not a readable file",
        ),
        (
            lambda root: (make_folder(root, ["a/0.png"]), (root / "a/up").symlink_to(root)),
            "points to one of its parent folders",
        ),
    ],
    ids=["missing", "empty", "images only", "empty class", "splits", "dangling link", "loop"],
)
def test_a_wrong_folder_is_explained(tmp_path, prepare, says):
    root = tmp_path / "set"
    root.mkdir()
    prepare(root)
    with pytest.raises(ValueError, match=says):
        open_source(f"folder:{root}")


@pytest.mark.parametrize("spec", ["", "imagenet", "folder:", "tfds:", "file:/x", "/data/imagenet"])
def test_a_wrong_specification_is_explained(spec):
    with pytest.raises(ValueError, match=r"expected folder:PATH, csv:PATH or tfds:NAME"):
        open_source(spec)


def test_different_classes_are_explained(tmp_path):
    train = open_source(make_folder(tmp_path / "t", ["a/0.png", "b/0.png", "c/0.png"]))
    same = open_source(make_folder(tmp_path / "s", ["c/0.png", "a/0.png", "b/7.png"]))
    other = open_source(make_folder(tmp_path / "o", ["a/0.png", "d/0.png"]))
    check_same_classes(train, same)
    with pytest.raises(ValueError, match="only training has b, c; only validation has d"):
        check_same_classes(train, other)


def test_a_large_folder_stays_small_in_memory(tmp_path):
    """Pickled for the workers, a path costs its characters and twelve bytes."""
    names = [f"n{number % 10:08d}/n{number % 10:08d}_{number}.JPEG" for number in range(2000)]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    size = len(pickle.dumps(open_source(f"folder:{tmp_path}")))
    assert size < np.sum([len(name) + 12 for name in names]) + 2000


def test_every_format_is_read_and_what_is_left_out_is_said(tmp_path, caplog):
    read = ["a/1.BMP", "a/2.tif", "a/3.TIFF", "a/4.gif", "b/5.jfif", "b/6.jpe", "b/7.webp"]
    left = ["a/8.heic", "a/9.HEIC", "b/10.txt", "b/README"]
    ignored = ["a/@eaDir/11.jpg", "a/.hidden/12.jpg"]
    with caplog.at_level("WARNING"):
        source = open_source(make_folder(tmp_path, [*read, *left, *ignored]))
    keys = {source[index].key.removeprefix(f"{tmp_path}/") for index in range(len(source))}
    assert keys == set(read)
    (line,) = [record.getMessage() for record in caplog.records if "Left out" in record.message]
    assert line.startswith("Left out 4 files that are not images we read, in ")
    assert line.endswith(": 2 .heic, 1 .txt, 1 without an ending")
