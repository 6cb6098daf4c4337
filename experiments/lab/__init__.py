"""The laboratory: does the noise schedule matter? Five papers at a size that anyone can rerun.

Each file is one paper and one command, `python -m experiments.lab.NAME --out runs/lab`; run again it goes on where it
was.
"""
