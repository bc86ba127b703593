"""The life of a run: push, watch, download, verify, submit, and the record of it on disk.

push      decides whether a push is needed, and sends exactly once: `push_once`, `adopt`, `Pushed`,
          `Outcome`
watch     follows a run to its end: `watch_run`, `read_status`, `read_log`, `cancel_run`,
          `RequestedHardware`, `progress`
download  pulls and unpacks the outputs: `pull_ended_run`, `use_complete`, `unpack`, `PulledRun`,
          `require_everything_sent`, `Progress`, `Selection`, `EVERYTHING`
verify    compares a folder with the manifest that its run wrote: `verify`, `require_verified`
store     the run folders, and the names of runs: `RunFolder`, `RunName`, `find`
history   lists and compares runs: `RunRow`, `RunDetails`, `RunDifference`, `Metric`
submit    checks and submits a file once: `submit_once`, `wait_for_score`,
          `require_no_scoring_error`, `SubmitOptions`, `Submitted`
manifest  the JSON files of a run, typed: `RunAddress`, `RunRecord`, `RunManifest`, `RunEnd`,
          `OutputEntry`, `SubmissionRecord`, `Verdict`, `RUN_MANIFEST_NAME`

Other packages import these names from the modules. This file imports nothing, so that a command
loads only what it uses.
"""
