"""Training: the options, the loop and its backend in NumPy, what a run saves, the optimizer, schedules, clipping."""
