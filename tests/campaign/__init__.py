"""A campaign of faults: seeded runs of push, watch, pull and verify against a Kaggle that lies.

    python -m tests.campaign --runs 300 --seed 1     what `make faults` does
    python -m tests.campaign --seed 217 --runs 1 -v  one seed again, with all that was said

Each seed gives a kernel of its own, a plan of faults, and what people do: one terminal or several,
another machine, a process that is killed. When they have ended the faults are taken away, and the
run must come home. What is so is read from the local Kaggle's own files, never from the client.
"""
