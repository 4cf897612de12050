"""No test has a tolerance of its own: tolerances.py says by how much values may differ, and why."""

import ast
from pathlib import Path

import pytest

OWN = {Path(__file__).name, "tolerances.py"}
FILES = sorted(path for path in Path(__file__).parent.glob("*.py") if path.name not in OWN)

TOLERANCES = {"rtol", "atol", "rel", "abs", "rel_tol", "abs_tol", "delta", "places", "decimal", "significant"}
#: These functions have a default tolerance, which holds if none is given.
CLOSE = {"allclose", "isclose", "approx", "assert_close", "assert_allclose"}
CLOSE_TO_DECIMALS = {"assert_almost_equal", "assert_approx_equal", "assertAlmostEqual"}
#: If something has to stay below a number that is smaller than this, the number is a tolerance; shares are larger.
SMALL = 0.1


class Finder(ast.NodeVisitor):
    """Finds the lines of a module that compare something with a tolerance which is written there as a number."""

    def __init__(self, source):
        module = ast.parse(source)
        self.lines, self.numbers = set(), {}
        self.own = {node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(module):
            if isinstance(node, ast.Assign):
                value = self.number(node.value)
                self.numbers |= {name.id: value for name in node.targets if isinstance(name, ast.Name) and value}
        self.visit(module)

    def number(self, node):
        """The value of an expression of numbers, or of a name that stands for one; None for any other expression."""
        match node:
            case ast.Constant(value=int() | float() as value):
                return value
            case ast.Name(id=name):
                return self.numbers.get(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self.number(operand)
                return None if value is None else -value
            case ast.BinOp(left=left, op=operation, right=right):
                values = self.number(left), self.number(right)
                if None in values:
                    return None
                expression = ast.Expression(ast.BinOp(ast.Constant(values[0]), operation, ast.Constant(values[1])))
                return eval(compile(ast.fix_missing_locations(expression), "", "eval"))
        return None

    def visit_Call(self, node):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg in TOLERANCES}
        unnamed = (called in CLOSE - self.own and not given) or called in CLOSE_TO_DECIMALS
        if unnamed or any(self.number(value) is not None for value in given.values()):
            self.lines.add(node.lineno)
        self.generic_visit(node)

    def visit_Compare(self, node):
        terms = [node.left, *node.comparators]
        for left, operation, right in zip(terms, node.ops, terms[1:], strict=False):
            bound = {ast.Lt: right, ast.LtE: right, ast.Gt: left, ast.GtE: left}.get(type(operation))
            value = bound and self.number(bound)
            if value is not None and 0 < value < SMALL:
                self.lines.add(node.lineno)
        self.generic_visit(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_test_has_a_tolerance_of_its_own(path):
    assert not Finder(path.read_text(encoding="utf-8")).lines


@pytest.mark.parametrize(
    "source",
    [
        "np.testing.assert_allclose(a, b, rtol=1e-5)",
        "np.allclose(a, b)",
        "assert a == pytest.approx(b)",
        "assert a == approx(b, abs=10 * 1e-4)",
        "torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=0)",
        "math.isclose(a, b, rel_tol=1e-6)",
        "assert error < 1e-5",
        "assert 1e-5 >= error",
        "assert 0 < error <= 1e-7 * 2",
        "SAME = 1e-9\nassert error <= SAME",
        "def test():\n    tolerance = 2.0**-20\n    assert abs(a - b) < tolerance",
    ],
)
def test_a_tolerance_is_found(source):
    assert Finder(source).lines


@pytest.mark.parametrize(
    "source",
    [
        "from parity_tests.tolerances import SAME\nassert error <= SAME * size",
        "assert 0.8 < share < 1.25",
        "assert size < 30",
        "assert smallest > 1e-200",
        "assert a == pytest.approx(b, rel=SAME)",
        "check(scaled, 1 + 1e-6)",
        "layer_norm(x, eps=1e-5)",
        "abs(a - b)",
        "def assert_close(a, b):\n    agree(a, b)\nassert_close(a, b)",
    ],
)
def test_other_numbers_are_none(source):
    assert not Finder(source).lines
