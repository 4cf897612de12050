"""What a query earns by its execution: the reward of GRPO and of rejection sampling.

    1.0   it gives the rows of the reference on every filling
    0.1   it runs, and gives other rows
    0.0   SQLite refuses it, or it was stopped

A query that runs earns a little, because a group of answers that all earn nothing teaches nothing. It earns little,
because a model would otherwise learn to write any query that runs.
"""

from collections.abc import Sequence

import numpy as np

from numpygpt.shapes import Array, Inexact
from numpygpt.text2sql.questions import Example
from numpygpt.text2sql.scores import Verdict, judged

RIGHT, RUNS, REFUSED = 1.0, 0.1, 0.0


def reward_of(verdict: Verdict) -> float:
    """What a query of this verdict earns: a finite number, always."""
    if verdict.right:
        return RIGHT
    return RUNS if verdict.runs else REFUSED


def rewards(example: Example, queries: Sequence[str]) -> Inexact[Array, "N"]:
    """What each of these queries for one example earns, float64. The example's databases are made once."""
    with judged(example) as judge:
        return np.array([reward_of(judge.verdict(sql)) for sql in queries])
