"""Starts one command and measures it. Run as `python -I -S launch.py COMMAND…`.

It is a separate process, because Linux counts the memory of a parent process as the child's until
the child runs its program: a large benchmark would add its size to everything it measures.

Prints one line of JSON: seconds on the clock and on the processor, peak memory in bytes (of the
command, or of the largest process that it started and waited for), exit status.
"""

import json
import os
import subprocess
import sys
import threading
import time

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes; getrusage(2) of each system


def main() -> None:
    """Run the command with its output on stderr; the first argument is its limit in seconds."""
    began = time.perf_counter()
    process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=2)
    limit = threading.Timer(float(sys.argv[1]), process.kill)
    limit.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    limit.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    found = {
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * MAXRSS_UNIT,
        "status": process.returncode,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
