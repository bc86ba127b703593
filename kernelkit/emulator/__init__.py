"""The local Kaggle: answers the official client on loopback and runs what is pushed to it.

A house of its own. It imports nothing of kernelkit and nobody imports it: were the wire's names
shared with the client, a mistake in them would agree with itself. For the same reason it imports
neither kaggle nor kagglesdk. Start it with `python -m kernelkit.emulator`.

    state    the kernels, their versions, and Kaggle's rules; no HTTP, no processes
    sandbox  a private Linux namespace with Kaggle's folders
    session  the child process of one run: enters the sandbox, executes the notebook
    runner   starts, feeds, limits and ends those child processes
    library  datasets and models
    uploads  files on their way in
    metric   the score of a submission
    contest  competitions, their files and what is submitted to them
    delivery how an answer's bytes leave: whole, cut, slowly
    api      Kaggle's calls on kernels: JSON in, JSON out
    services the other calls
    faults   the lies it can be told to tell, as a plan; the list of them
    journal  what it was asked and what came of it
    server   the wire: HTTP, the log stream, downloads, uploads

A state folder (`--state`) outlives the emulator, also one that was killed: kernels, versions, and
runs that had ended are there again, log and outputs too. What was queued or running when it was
killed is begun anew, in an emptied working folder; stopped politely, it cancels its runs first.

What is not covered: scripts (notebooks only), interactive sessions, Docker images, the
limits on memory and disk. Which of Kaggle's behaviours are certain, and which are hearsay, is said
beside each rule: [V] seen in the client's source, [D] documented, [A] anecdotal, [?] our choice.
"""
