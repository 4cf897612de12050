"""The thresholds of the suite, all in one place; no test has one of its own.

FLOAT64_NORMWISE   largest ‖ours - PyTorch's‖ / ‖PyTorch's‖ of a tensor in float64 at ordinary scales
COMPLEX_STEP       largest ‖ours - complex step's‖ / ‖complex step's‖ of a gradient
FLOAT64_CURVE      largest difference between our losses and PyTorch's (nats) along 200 steps of training in float64;
                   each step starts with the rounding errors of the steps before
FLOAT64_SHARED     largest difference between a run that several processes share and the run of one, along 20 steps in
                   float64: of all losses (nats), gradients, their norms, or weights, taken together
SEEN               the relative error that gradcheck has to see in any single gradient in float64
FACTOR             how many times as large as the errors of a sound computation ours may be
                   (`torchgpt.checks.parity`): in float32, and in float64 in each row and at extreme scales
"""

from numpygpt.checks.compare import FLOAT64_NORMWISE
from numpygpt.checks.derivatives import THRESHOLD as COMPLEX_STEP
from torchgpt.checks.parity import FACTOR

FLOAT64_CURVE = 1e-9
SEEN = 1e-9
FLOAT64_SHARED = 1e-10

__all__ = ["COMPLEX_STEP", "FACTOR", "FLOAT64_CURVE", "FLOAT64_NORMWISE", "FLOAT64_SHARED", "SEEN"]
