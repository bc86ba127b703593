"""`kernelkit prove`: the project's own tests, run against the files that the notebook writes.

prove          runs the tests twice and compares: `prove`, `Proof`, `without_accelerator`,
               `DEADLINE_SECONDS`
remedies       says what to do about tests that differ
pytest_plugin  records the outcome of every test, inside the project's own pytest
"""
