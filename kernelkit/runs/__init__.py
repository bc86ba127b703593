"""The life of a run: push, watch, download, verify, submit, and the record of it on disk.

push      decides whether a push is needed, and sends exactly once: `push_once`, `find_or_adopt`,
          `adopt`, `current_kernel`, `Pushed`, `Outcome`
watch     follows a run to its end: `follow_run`, `state_of`, `read_log`, `cancel_run`,
          `EndedRun`
download  pulls the outputs: `pull_run`, `PulledRun`, `Progress`, `Selection`, `EVERYTHING`
delete    saves what a run has left, and deletes its kernel: `prepare_deletion`, `delete_kernel`,
          `Deletion`
unpack    turns verified zips into folders: `unpack_zips`
verify    compares a folder with the manifest that its run wrote: `verify`, `require_verified`,
          `missing_outputs`, `VerifiedFolder`
resume    what a run that ended early has left, and the command that continues it:
          `has_left_files`, `accepts_resume`, `how_to_resume`, `command_to_resume`,
          `endpoint_option`, `point_text`,
          `REHEARSE_AGAIN`
failure   requires that a run has succeeded, and says why it failed: `require_success`
store     the run folders, and the names of runs: `RunFolder`, `find`, `find_named`,
          `folders`, `versions`, `rehearsal_lock`, `remove_rehearsal`, `now`
history   lists and compares runs: `rows`, `show`, `diff`, `RunRow`, `RunDetails`,
          `RunDifference`
events    the events in a log, with their times: `read_events`, `TimedEvent`
estimate  how long a run will take, by earlier ones: `estimate`, `Estimate`, `Certainty`, `Wanted`
export    the runs as csv, or for TensorBoard or MLflow: `export`, `ExportFormat`, `Exported`
metric    the number that says how good a run is: `Metric`, `best_metric`
submit    checks and submits a file once: `submit_once`, `wait_for_score`,
          `require_no_scoring_error`, `SubmitOptions`, `Submitted`
submission_check  compares a submission file with the competition's sample
identity  which run a log or a manifest belongs to: `Identity`
manifest  the JSON files of a run, typed: `RunAddress`, `RunRecord`, `RunManifest`, `RunEnd`,
          `OutputEntry`, `RunFacts`, `TrialPart`, `SubmissionRecord`, `Verdict`,
          `RUN_MANIFEST_NAME`, `finite`

Other packages import these names from the modules. This file imports nothing, so that a command
loads only what it uses.
"""
