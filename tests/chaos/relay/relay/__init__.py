"""The package that the chaos tests of chains and sweeps push."""
