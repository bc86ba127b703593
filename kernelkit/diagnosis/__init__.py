"""Explains why a run failed: its log becomes a cause, a place in the repository and a next step.

diagnose    reads a log: `diagnose`, `diagnose_folder`, `diagnose_log`, `Diagnosis`, `Frame`
documents   reads bundle.json, run-manifest.json and run.json: `RunReport`, `SentBundle`
rules       the known causes: `FailureCause`, `RULES`
tracebacks  finds tracebacks in a log: `read_tracebacks`, `Traceback`
"""
