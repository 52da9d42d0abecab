"""Files that are written as a whole."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastervit_jax.data.paths import write_whole


def test_two_writers_of_one_file(tmp_path):
    """Two evaluations may have the same --json: the file is always one of theirs."""
    path = tmp_path / "result.json"

    def write(number: int) -> None:
        for _ in range(50):
            write_whole(path, json.dumps([number] * 1000))
            assert len(set(json.loads(path.read_text()))) == 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_nothing_stays_of_a_write_that_fails(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "x.json", "\ud800")
    assert not list(tmp_path.iterdir())
