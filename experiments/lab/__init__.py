"""The laboratory: does the noise schedule matter? Five papers at a size that anyone can rerun.

`edm`, `noise_schedule`, `consistency`, `align_your_steps` and `cvdm` are a paper and a command each, `python -m
experiments.lab.NAME --out runs/lab`; run again it goes on where it was. They are made of

  protocol      how networks are trained and their samples scored; `levels` tells their losses by noise level
  restoration   the same for `cvdm`, whose images and measurements are made by `microscopy`
  results       means over seeds with their standard errors, files and plots
"""
