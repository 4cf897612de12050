"""Training: the run and what it saves, the optimizer, schedules, clipping."""
