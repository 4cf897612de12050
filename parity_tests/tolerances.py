"""The thresholds of the suite, all in one place; no test has one of its own.

FLOAT64_NORMWISE   largest ‖ours - PyTorch's‖ / ‖PyTorch's‖ of a tensor in float64 at ordinary scales
COMPLEX_STEP       largest ‖ours - complex step's‖ / ‖complex step's‖ of a gradient
FACTOR             how many times as large as a sound computation's errors ours may be (`torchgpt.parity`): in float32,
                   and in float64 by row and at extreme scales
"""

from numpygpt.compare import FLOAT64_NORMWISE
from numpygpt.gradcheck import THRESHOLD as COMPLEX_STEP
from torchgpt.parity import FACTOR

__all__ = ["COMPLEX_STEP", "FACTOR", "FLOAT64_NORMWISE"]
