"""One file an experiment: `get_config()` and a docstring that says what to run and to expect."""
