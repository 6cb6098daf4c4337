"""Experiments as data: each file has get_config(), whose docstring says what it is and how to run it."""
