"""`kernelkit prove`: the project's own tests, run against what the notebook writes.

prove          runs the tests twice and compares: `prove`, `Proof`
pytest_plugin  records the outcome of every test
"""
