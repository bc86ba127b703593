"""Why a run failed: a log becomes a cause, a place in the repository and a next step.

diagnose    reads a log: `diagnose`, `Diagnosis`
rules       the known causes
tracebacks  finds tracebacks in a log and maps them to the repository
"""
