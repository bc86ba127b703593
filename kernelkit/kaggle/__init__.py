"""The only door to Kaggle: typed calls of the official SDK, with timeouts and retries.

types         what is sent and received; needs no SDK: `Credentials`, `KernelInfo`,
              `ListedKernel`, `LogEntry`, `OutputFile`, `PushResponse`, `Quota`, `Scoring`,
              `State`, `Status`, `Submission`, `Terms`, `Timeouts`, `PRODUCTION`, `ignore`,
              `is_time_out`, `state_word`, `growing`
kernels       a connection, and the calls about kernels, datasets, models and the quota:
              `connect`, `Kaggle`
competitions  terms, sample, submissions and scores: `Competition`
datasets      what a dataset holds, and new versions of it: `Dataset`, `DatasetDetails`,
              `BROKEN`, `NAME_LENGTHS`, `READY`, `SLUG`
uploads       sends a file to an address that Kaggle names: `upload`, `UploadAddress`
transfer      downloads one output: `download`, `Transfer`, `Stopped`
logs          reads a log, live or finished: `parse_log`, `stream_log`
credentials   whose account this is: `account_name`, `key_files`
local         starts a local Kaggle, checks its folder of inputs: `local_kaggle`,
              `emulator_command`, `require_inputs`, `ReadyLocalKaggle`
waiting       ends a call that makes no progress, or at a deadline
connection    the SDK's client with timeouts; refuses endpoints on other machines
answers       turns each failure of a call into a kernelkit error, or retries it

Nothing here prints. Other packages import these names from the modules. This file imports nothing:
the SDK takes 0.3 s to import, and is needed only once a connection is made.
"""
