"""Several runs as one campaign: a chain of sessions, a sweep over parameters.

A *session* is one version of a kernel that a campaign pushes. A *lane* is a kernel of its own for
the sessions that follow each other, so that no version runs while another one of it does.

lanes     the project as another kernel, or with other parameters: `lane_config`,
          `session_config`, `resuming_config`
sessions  pushes each session once, finds it again, follows it to its end: `Session`,
          `push_session`, `pull_session`, `new_campaign`, `Ending`, `ending_of`, `RETRIES`
sweep     trials with different parameters, some at once: `run_sweep`, `read_sweep`,
          `rehearse_sweep`, `best_sweep_trial`
sweep_plan  every setting of a sweep: `plan_sweep`, `set_options`, `SweepPlan`, `SweepView`,
          `SweepEvent`
scheduler  keeps the lanes of a sweep busy
space     which parameters a sweep varies
study     the trials of a sweep in Optuna's database: `SweepTrial`
results   what a session says about its trials
report    a page with pictures
plan      what a run, a chain or a sweep will need, and whether the quota has it: `make_plan`,
          `sweep_shape`, `Plan`, `SweepShape`
notify    messages at the end of a run or a campaign, and when the quota gets low: `messenger`,
          `Messenger`
chain     one session after another until the program is done: `run_chain`, `read_chain`,
          `rehearse_chain`, `command_of`, `ChainRecord`, `ChainSession`
elsewhere  a chain that Kaggle has, and that was started on another machine
progress  how far a session of a chain has come
collect   downloads and verifies the runs of a project that were pushed elsewhere: `collect`,
          `CollectResult`, `CollectedRun`

A campaign keeps its state on disk under `runs/<slug>/`, and writes down each session before it
pushes it. Nothing here prints: what happens is reported to `on_event`.
"""
