"""One uninterrupted tiny run for all tests that interrupt others."""

import pytest

from tests.small import killed_run as tiny_run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A directory with images (`data`), compiled programs (`cache`) and a whole run (`whole`)."""
    root = tmp_path_factory.mktemp("tiny")
    tiny_run.write_images(root / "data")
    result = tiny_run.run(root / "whole", root / "data", root / "cache")
    assert result.returncode == 0, result.stderr
    steps = [record["step"] for record in tiny_run.records(root / "whole") if "loss" in record]
    assert steps == list(range(1, tiny_run.STEPS + 1))
    return root
