"""Chaos tests: seeded runs of push, watch, pull and verify against a local Kaggle with faults.

    python -m tests.chaos --runs 300 --seed 1     what `make faults` does
    python -m tests.chaos --seed 217 --runs 1 -v  one seed again, with all messages

Each seed has its own kernel, a plan of faults, and users: one terminal or several, another machine,
a process that is killed. When they have ended, the faults are removed, and a last pull must
download the run. The checks read the local Kaggle's files, never the client's claims.

    plan       what happens in a seed
    case       runs a seed and checks the promises
    plugin     the emulator's plugin: injects faults, writes the journal
    faults     the catalog of faults
    throttle   slow, cut and wrong-length bodies
    outage     a server that goes down and comes back
    journal    the requests and their effects
"""
