"""Training: the step, its optimizer and average, where arrays live, checkpoints, metrics, and the summary of a run."""
