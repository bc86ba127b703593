"""Runs inside the notebook: finds inputs, checks hardware, calls the entry, writes the manifest.

The notebook carries these modules as the package `kernelkit_runtime`. They use only the standard
library and import each other relatively, so that the same files work on the build side too. All
they know about the build is the manifest (`bundle.json`) that the notebook embeds. Any cell that
fails leaves a run manifest with the error. A notebook leaves out `command_line`, `trials` and
`wheels` if its run does not need them.

run           `NotebookRun`: what the cells call, in their order
hardware      the machine, its GPUs, and whether they compute
sources       the carried files: written, compared with the manifest, made importable
installation  pip, and the metadata of the project's distribution
wheels        pip without internet: from the wheels of a dataset, checked by their hashes
inputs        the folders of the run, and `kaggle://` addresses
command_line  parameters as the command line of a script
program       calls the entry
events        the events that the entry prints, also those of child processes
metric        which number of the events says how good a run is
trials        several trials of a sweep side by side
deadline      how long the run may take: `time_left`
watchdog      next to the program: refreshes the manifest, ends a run that has stalled
descriptions  size and sha256 of files while the run lasts
outputs       the declared outputs, and what the manifest says of each
run_manifest  run-manifest.json, and its line in the log
epochs        the epochs of the run, from its events
results       what the notebook shows: metric, epochs, tables and images
tables        tables as HTML and as text
charts        curves as SVG
recording     any value as JSON of bounded size
files         SHA-256, the files below a folder
documents     the JSON documents, typed
faults        `RuntimeFault`, `Stalled`
"""

from .deadline import time_left
from .documents import BundleDocument, OptionDocument, RunManifestDocument
from .events import EVENT_CHARACTERS, INCOMPLETE, RunEvent, parse_event
from .faults import RuntimeFault, Stalled
from .files import NOT_OUTPUTS
from .inputs import HOURS_LEFT
from .metric import goal_of, metric_among
from .run import NotebookRun
from .run_manifest import MANIFEST_MARK
from .sources import CODE_FILE

__all__ = [
    "CODE_FILE",
    "EVENT_CHARACTERS",
    "HOURS_LEFT",
    "INCOMPLETE",
    "MANIFEST_MARK",
    "NOT_OUTPUTS",
    "BundleDocument",
    "NotebookRun",
    "OptionDocument",
    "Run",
    "RunEvent",
    "RunManifestDocument",
    "RuntimeFault",
    "Stalled",
    "goal_of",
    "metric_among",
    "parse_event",
    "time_left",
]

Run = NotebookRun  # as the template 30-hardware of kernelkit 0.1.0 calls it
