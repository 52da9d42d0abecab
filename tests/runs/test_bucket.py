"""A work directory in a bucket, `gs://`: checkpoints, metrics and pictures, and going on there.

The bucket is a server of our own in memory (`bucket_server`); its clients are the real ones:
TensorStore, gcsfs and google-cloud-storage.
"""

import json
import os
import subprocess

import pytest

from tests.runs.bucket_server import bucket_server
from tests.small import killed_run

pytestmark = pytest.mark.slow


def test_a_run_in_a_bucket_goes_on_where_it_stands(tiny, tmp_path):
    pytest.importorskip("gcsfs", reason="gs:// needs gcsfs: pip install 'fastervit-jax[gcs]'")
    cache = tiny / "cache"
    with bucket_server() as (objects, variables):
        for epochs, step in ((1, killed_run.EPOCH_STEPS), (0, killed_run.STEPS)):
            command = killed_run.command("gs://bucket/run", tiny / "data", stop_after_epochs=epochs)
            result = subprocess.run(
                command,
                cwd=killed_run.ROOT,
                env=killed_run.environment(cache) | variables,
                capture_output=True,
                text=True,
                timeout=1500,
            )
            assert result.returncode == 0, result.stderr
            assert any(name.startswith(f"run/checkpoints/{step}/") for name in objects)
        assert f"Resuming from step {killed_run.EPOCH_STEPS} of" in result.stdout
        (tmp_path / "metrics.jsonl").write_bytes(objects["run/metrics.jsonl"][0])
        assert killed_run.records(tmp_path) == killed_run.records(tiny / "whole")
        assert json.loads(objects["run/config.json"][0])["batch_size"] == 8
        for picture in ("curves.png", "predictions.png"):
            assert objects[f"run/{picture}"][0].startswith(b"\x89PNG")
        events = [name for name in objects if name.startswith("run/events.out.tfevents")]
        assert len(events) == 2 and all(objects[name][0] for name in events)
    assert not os.path.exists(killed_run.ROOT / "gs:")
