"""The thresholds of the suite, each with its reason; no test has one of its own."""

#: Largest ‖ours - reference‖ / ‖reference‖ of a tensor in float64 at ordinary scales, where the reference is PyTorch's float64.
FLOAT64_NORMWISE = 1e-12
