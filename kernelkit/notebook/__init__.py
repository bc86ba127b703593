"""A `Bundle` and Jinja templates become a notebook, and an edited notebook becomes a package again.

manifest   the JSON that leaves with a notebook, typed: `Document`, `Manifest`, `ManifestFile`,
           `ManifestWheels`, `KernelMetadata`, `BUNDLE_NAME`
render     the notebook with its metadata: `render`, `Kernel`, `write_kernel`, `RenderedKernel`
cells      how a file becomes a cell, and the notebook's JSON; the text of a cell is in templates/
description  what the notebook says about itself
templates  checks and renders the Jinja files
sandbox    reads the files of templates, and bounds what they can do
code_dataset  the private dataset with the packages: `write_code`, `CODE_FOLDER`
layout     which files are compressed, and the size of each: `SizeEntry`, `SIZE_LIMIT_BYTES`,
           `SIZE_CAP_BYTES`
runtime    the package that runs inside the notebook; standard library only: `NotebookRun`,
           `HOURS_LEFT`, `INCOMPLETE`, `MANIFEST_MARK`, `RunEvent`, `EVENT_CHARACTERS`,
           `parse_event`, `goal_of`, `metric_among`, and the limits of a session:
           `SESSION_HOURS`, `TPU_SESSION_HOURS`, `MARGIN_SECONDS`, `MARGIN_PART`
preflight  problems that would cost a run, found before a push: `check`, `compare_with_image`,
           `advise`, `WARNING`
problems   `Problem`, `ProblemList`, `require_no_problems`
reader     the cells and the manifest of a notebook: `read_cells`, `embedded_manifest`,
           `with_push`
edits      edits made in a notebook: `read_notebook`, `plan`, `require_applicable`, `apply`,
           `SyncPlan`

Other packages import these names from the modules. This file imports nothing, so that a command
loads only what it uses.
"""
