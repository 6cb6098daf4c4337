"""The commands: train, sample, evaluate. `python -m experiments.NAME --help` says what each takes."""
