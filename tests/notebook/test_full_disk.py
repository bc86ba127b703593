"""A run whose disk gets full: on a small file system of its own, in a private namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOUNT = 'mount -t tmpfs -o size=256k none "$1" && shift && exec "$@"'

SCRIPT = """
import json, sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
from kernelkit.notebook.runtime import NotebookRun
from kernelkit.notebook.runtime import watchdog

watchdog.TICK_SECONDS, watchdog.EVENT_SECONDS, watchdog.REFRESH_SECONDS = 0.02, 0.05, 0.1
bundle = {
    "digest": "d" * 64, "wants_gpu": False, "kernel": {"machine_shape": ""}, "files": [],
    "outputs": ["out.bin"], "third_party": [], "stall_minutes": 1.0,
}
shell = InteractiveShell.instance()
shell.user_ns |= {"bundle": bundle, "NotebookRun": NotebookRun}
shell.run_cell("run = NotebookRun(bundle, '.')")
shell.run_cell("run.resolve({})")
shell.run_cell(sys.argv[1])
working = Path(sys.argv[2])
print("LEFT", json.dumps({p.name: p.stat().st_size for p in working.iterdir()}), flush=True)
print("MANIFEST", json.dumps(json.loads((working / "run-manifest.json").read_text())), flush=True)
"""

FILL = """
import time, pathlib
with run._watched():
    print('{"event": "epoch", "epoch": 1}')
    time.sleep(0.5)  # a manifest with this event
    with open(run.working_dir / "out.bin", "wb", buffering=0) as out:
        for _ in range(200):
            out.write(b"x" * 4096)
"""


def test_a_full_disk_ends_the_run_with_its_reason_and_a_whole_manifest(tmp_path: Path) -> None:
    """The last manifest that had room stays; the log has the one of the failure."""
    working, script = tmp_path / "working", tmp_path / "script.py"
    working.mkdir()
    script.write_text(SCRIPT)
    environment = {f"KAGGLE_{name}_DIR": str(tmp_path) for name in ("INPUT", "TEMP")}
    environment |= {"KAGGLE_WORKING_DIR": str(working), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", MOUNT, "sh", working, sys.executable, script, FILL, working],
        env={
            **os.environ,
            **environment,
            "KAGGLE_WORKING_DIR": str(working),
            "HOME": str(tmp_path),
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this machine allows no file systems of one's own")
    lines = done.stdout.splitlines()
    left, kept, printed = (
        json.loads(next(one for one in lines if one.startswith(mark)).removeprefix(mark))
        for mark in ("LEFT ", "MANIFEST ", "kernelkit-manifest ")
    )
    assert (printed["status"], printed["last_event"]["epoch"]) == ("failed", 1)
    assert "No space left on device" in printed["error"]
    assert kept["status"] in ("running", "failed")
    assert kept["last_event"]["epoch"] == 1
    assert left.keys() == {"out.bin", "run-manifest.json"}  # no half-written manifest
