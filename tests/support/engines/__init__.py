"""Real container engines for the tests: installing them, running them, driving them."""
