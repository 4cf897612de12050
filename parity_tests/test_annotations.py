"""In the test run, a function refuses what its annotations do not allow, however late its check is made."""

import numpy as np
import pytest
from beartype import beartype
from jaxtyping import config

from numpygpt.model.config import means
from numpygpt.ops import linear
from numpygpt.shapes import Array, Inexact
from parity_tests.annotations import REFUSED, checked


@checked(typechecker=beartype)
def rows_of(x: Inexact[Array, "N D"], times: int = 1) -> Inexact[Array, "2*N D"]:
    return np.concatenate([x] * (1 + times))


@checked(typechecker=beartype)
def length_of(text: str) -> int:
    return text if text == "no number" else len(text)


def scaled_by(factor):
    @checked(typechecker=beartype)
    def scaled(x: Inexact[Array, "N"]) -> Inexact[Array, "N"]:
        return factor * x

    return scaled


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: rows_of(np.ones(3)), id="an axis less"),
        pytest.param(lambda: rows_of(np.ones((2, 3), int)), id="integers"),
        pytest.param(lambda: rows_of(np.ones((2, 3)), times=2), id="a result of another size"),
        pytest.param(lambda: rows_of(np.ones((2, 3)), times="1"), id="a text for a number"),
        pytest.param(lambda: scaled_by(2)(np.ones((2, 3))), id="of an inner function"),
        pytest.param(lambda: scaled_by(np.ones((2, 1)))(np.ones(3)), id="a result of an inner function"),
        pytest.param(
            lambda: linear.forward(np.ones((2, 3)), np.ones((4, 5)), None), id="of an operation of the project"
        ),
        pytest.param(lambda: length_of(3), id="another type where there are no shapes"),
        pytest.param(lambda: length_of("no number"), id="a result of another type where there are no shapes"),
        pytest.param(lambda: means(3), id="of a function of the project without shapes"),
    ],
)
def test_what_has_another_shape_or_type_is_refused_at_each_call(call):
    for _ in range(2):
        with pytest.raises(REFUSED):
            call()


def test_each_inner_function_is_called_itself_though_all_share_a_check():
    twice, thrice = scaled_by(2), scaled_by(3)
    assert [twice(np.ones(1)), thrice(np.ones(1)), twice(np.ones(2)).sum()] == [2, 3, 4]
    assert rows_of(x=np.ones((2, 3))).shape == (4, 3)
    assert length_of("four") == 4


def test_without_checks_anything_goes(without_checks_of_annotations):
    assert config.jaxtyping_disable
    assert rows_of(np.ones(3)).shape == (6,)
    assert length_of([1]) == 1
