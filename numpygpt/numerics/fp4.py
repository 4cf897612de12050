"""FP4, the 4-bit floating-point code of bitsandbytes: a sign bit, two exponent bits and one mantissa bit.

    code   s e e m; the first bit of the four is the sign

    eem         000  001     010  011  100  101  110  111
    (1)  level    0  0.0625    8   12    4    6    2    3     / 12

It has 8 and 12 at the small codes: only the set of levels is that of a float, and its order is bitsandbytes' own. The
levels are denser near zero, but only two lie beyond a half of the block's largest. -0 is a code too: it stands for the
values between zero and the middle of zero and 0.0625 / 12, as the one of both zeros that comes later in the order.

Sources: bitsandbytes, functional.get_4bit_type; Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 5.1, which finds
NF4 better. Other programs mean other levels by FP4: those of the OCP's MX format E2M1 are 0, 0.5, 1, 1.5, 2, 3, 4, 6.
"""

import numpy as np

_MAGNITUDES = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)

#: In the order of their codes, which is not that of their size.
LEVELS = np.concatenate([_MAGNITUDES, -_MAGNITUDES])  # (1)
