"""Damaged files: few of each kind in seconds; thousands in the slow test."""

import importlib.util

import pytest

from tests.faults import damaged_files

SHORT = {
    **{kind: range(20) for kind in damaged_files.IMAGES},
    "loader": range(2),
    "mask": range(20),
    "coco": range(20),
    "config": range(4),
    "orbax": range(8),
}


def _read(work, tmp_path):
    record = damaged_files.read_all(work, seed=7, workdir=tmp_path)
    assert record["wrong"] == []
    for kind, numbers in work.items():
        answers = record["by_kind"][kind]
        assert answers["files"] == len(numbers)
        assert answers.get("refused", 0) > 0, kind
    return record


def test_a_few_damaged_files_of_each_kind(tmp_path):
    record = _read(SHORT, tmp_path)
    assert sum(record["by_kind"][kind].get("read", 0) for kind in damaged_files.IMAGES) > 20


@pytest.mark.slow
def test_thousands_of_damaged_files(tmp_path):
    work = damaged_files.shares(images=3000, others=500)
    if importlib.util.find_spec("torch") is None:
        del work["torch_zip"], work["torch_pickle"]
    print(_read(work, tmp_path))


def test_what_no_reader_may_do_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(damaged_files, "LIMIT", 3)
    work = {kind: range(1) for kind in damaged_files.BAD}
    record = damaged_files.read_all({**work, "gif": range(3)}, seed=0, workdir=tmp_path)
    answers = {each["kind"]: each["answer"] for each in record["wrong"]}
    assert answers == {
        "obeys": "obeys the file: os.system (b'true',)",
        "raises": "IndexError: pop from empty list",
        "grows": "needs too much memory",
        "hangs": "hangs: more than 3 s",
        "crashes": "ends the interpreter: exit code -11",
    }
    assert record["by_kind"]["gif"]["files"] == 3  # it goes on after each
