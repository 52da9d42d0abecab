"""Every test sees eight CPU devices, so that meshes can be tested anywhere."""

import importlib.util
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"


def pytest_terminal_summary(terminalreporter):
    """Says at the end what was not compared (tests/reference is left out then)."""
    official = ("torch", "timm", "fastervit")
    missing = [name for name in official if importlib.util.find_spec(name) is None]
    if missing:
        terminalreporter.write_line(
            "NOT COMPARED with the official FasterViT (tests/reference was left out): "
            f"{', '.join(missing)} not installed."
        )
