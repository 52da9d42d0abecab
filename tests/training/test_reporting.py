"""What a run leaves to look at, read back without the code that wrote it."""

import json
import struct

import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from fastervit_jax.training.reporting import Reporter
from tests.runs.full_disk import files_of_at_most


def _events(path) -> list[Event]:
    """Events of a TFRecord file: length, its checksum, data, its checksum."""
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def test_records_stand_in_both_files_once(tmp_path):
    reporter = Reporter(epath.Path(tmp_path), resume_step=0)
    reporter.write(3, loss=0.5, grad_norm=float("nan"))
    reporter.write(4, loss=0.25)
    reporter.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == [{"step": 3, "loss": 0.5, "grad_norm": None}, {"step": 4, "loss": 0.25}]
    (file,) = tmp_path.glob("events.out.tfevents.*")
    scalars = [(e.step, v.tag, v.simple_value) for e in _events(file) for v in e.summary.value]
    assert scalars == [(3, "loss", 0.5), (4, "loss", 0.25)]


def test_a_resumed_run_tells_tensorboard_from_where(tmp_path):
    Reporter(epath.Path(tmp_path), resume_step=7).close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    starts = [e.step for e in _events(file) if e.session_log.status == e.session_log.START]
    assert starts == [8]


def test_a_full_disk_is_told_by_the_write_and_not_again(tmp_path, capfd):
    reporter = Reporter(epath.Path(tmp_path), resume_step=0)
    with files_of_at_most(2000):
        with pytest.raises(OSError, match=f"Cannot write to {tmp_path}: .*. Free space"):
            for step in range(1000):
                reporter.write(step, loss=1.0)
        reporter.close()
    assert capfd.readouterr().err == ""
