"""The local Kaggle: answers the official client on loopback and runs the notebooks pushed to it.

The emulator stands alone: it imports nothing from the rest of kernelkit, and the rest does not
import it. If client and emulator shared the names of the protocol, a mistake in them would go
unnoticed. For the same reason it imports neither kaggle nor kagglesdk. Start it with
`python -m kernelkit.emulator`.

    state         kernels, their versions, and Kaggle's rules; no HTTP, no processes
    dataset_metadata  what the owner of a dataset says about it
    downloads     files at addresses of their own, and archives of them
    limits        caps of sessions, limits of time, quotas, and a clock that can run faster
    datasets      datasets and models
    competitions  competitions, their files, and the submissions to them
    scoring       the score of a submission, by the metric of the competition
    metric        the metric of masks: mean average precision over IoU thresholds
    uploads       files that clients upload
    storage       atomic JSON files, the lock of the state folder, safe names
    runner        starts, watches, limits and ends the runs
    session       the child process of one run: enters the sandbox, executes the notebook
    environment   the Python environment of one run, for its pip
    sandbox       a private Linux namespace with Kaggle's folders
    fields        the JSON of a call: typed fields, answers, pages
    kernels_api   Kaggle's calls on kernels and accounts
    kernel_list   which kernels a list shows, and in which order
    competitions_api  Kaggle's calls on competitions and submissions
    datasets_api  Kaggle's calls on datasets, models and their uploads
    responses     what a request returns
    server        HTTP: calls, the log stream, downloads, uploads
    plugin        the hook for tests: acts around requests and runs

A state folder (`--state`) survives the emulator, even if it is killed: kernels, versions, and ended
runs with log and outputs are there at the next start. Runs that were queued or running when it was
killed start again with an empty working folder. An emulator that is stopped cancels its runs first.

Not covered: scripts (notebooks only), interactive sessions, Docker images, limits on memory and
disk. A mark next to each rule says how certain it is: [V] verified in the client's source, [D]
documented, [A] anecdotal, [?] our choice.
"""
