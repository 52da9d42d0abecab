"""Commands that take minutes say what they do."""

import time

from fastervit_jax.commands.waiting import Waiting


def test_what_is_done_for_how_long_and_how_long_it_took_before(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Waiting("compile a", every=0.05) as waiting:
        waiting.say("Compiling.")
        time.sleep(0.2)
    assert capsys.readouterr().err.startswith("Compiling.\nCompiling. 0:00 minutes so far.\n")
    with Waiting("compile b"):
        pass
    assert capsys.readouterr().err == ""
    with Waiting("compile a"):
        pass
    assert capsys.readouterr().err == "This took 0:00 minutes the last time.\n"


def test_a_home_that_cannot_be_written_to_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with Waiting("compile a"):
        pass
