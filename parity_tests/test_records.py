"""The suite refuses an operation that lacks any part of its record, and says which."""

import pkgutil
from collections import Counter
from importlib import import_module
from types import ModuleType

import numpy as np
import pytest

from numpygpt import layers, objectives, ops
from numpygpt.checks import own_gradients, records
from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly, Call, Record, differentiated, missing
from numpygpt.checks.records import BUGS, CONTROLS, OPERATIONS, RECORDS
from numpygpt.checks.source import Only, at_random
from numpygpt.model import body
from numpygpt.ops import linear
from torchgpt.checks.oracles import ORACLES

#: The modules of these rooms are operations, or their records say why not. In the room of the model, the body is one.
MODULES = [
    import_module(f"{room.__name__}.{module.name}")
    for room in (ops, layers, objectives)
    for module in pkgutil.iter_modules(room.__path__)
] + [body]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_module_has_all_that_is_needed_to_check_it(module):
    name = module.__name__.rpartition(".")[2]
    assert missing(module, RECORDS.get(name), has_oracle=name in ORACLES) == []


def test_each_record_and_each_oracle_is_of_a_module():
    assert {record.module.__name__ for record in OPERATIONS.values()} <= {module.__name__ for module in MODULES}
    assert ORACLES.keys() == OPERATIONS.keys()
    files = {file.name for file in pkgutil.iter_modules(records.__path__)}
    assert files == {record.name for record in RECORDS.values()} == set(RECORDS)


def test_no_two_bugs_have_one_name():
    names = [bug.name for record in RECORDS.values() for bug in (*record.bugs, *record.controls)]
    assert not [name for name, times in Counter(names).items() if times > 1]
    assert set(names) == BUGS.keys() | {control.name for control in CONTROLS}


# Refusals, with a module that is made for the purpose

OPERATION = ModuleType("numpygpt.ops.cube")
OPERATION.forward = OPERATION.backward = lambda *_: None
NO_OPERATION = ModuleType("numpygpt.ops.cubes")
CUBE = Call({"x": np.ones(3)})
BUG = Bug("squared", "", "", "", (), (Change("ops.cube:forward", "3", "2"),))
COMPLETE = Record(OPERATION, lambda source: CUBE, {"ones": CUBE}, lambda source: {"": CUBE}, (BUG,))


def test_a_complete_record_lacks_nothing():
    assert missing(OPERATION, COMPLETE, has_oracle=True) == []
    reasons = COMPLETE._replace(special="no call is special", complex_step="it compares numbers")
    assert missing(OPERATION, reasons, has_oracle=True) == []
    elsewhere = BUG._replace(changes=(Change("ops.cubes:table", "3", "2"),))
    assert missing(NO_OPERATION, BugsOnly(NO_OPERATION, "a table", (elsewhere,)), has_oracle=False) == []


@pytest.mark.parametrize(
    ("lacks", "record", "has_oracle"),
    [
        ("a record: a file of its name", None, True),
        ("a way to draw a call", COMPLETE._replace(draw=None), True),
        ("a special call, or the reason", COMPLETE._replace(special={}), True),
        ("a call to check by complex step, or the reason", COMPLETE._replace(complex_step=""), True),
        ("a planted bug", COMPLETE._replace(bugs=()), True),
        ("an oracle: a function of its name", COMPLETE, False),
        ("a Record in place of a BugsOnly", BugsOnly(OPERATION, "none", (BUG,)), True),
        (
            "a change of this very module in squared",
            COMPLETE._replace(bugs=(BUG._replace(changes=(Change("ops.gelu:forward", "3", "2"),)),)),
            True,
        ),
    ],
)
def test_what_a_record_lacks_is_refused_and_named(lacks, record, has_oracle):
    (wrong,) = missing(OPERATION, record, has_oracle=has_oracle)
    assert wrong.startswith(lacks)


def test_a_module_without_forward_and_backward_has_to_say_why():
    wrong = missing(NO_OPERATION, BugsOnly(NO_OPERATION, "", ()), has_oracle=False)
    assert wrong == ["a planted bug", "the reason why it has no forward and backward"]
    assert "forward and backward" in missing(NO_OPERATION, COMPLETE, has_oracle=True)


# Draws without hypothesis, as gradcheck makes them


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_plain_random_source_draws_calls_that_can_be_checked(name):
    record = OPERATIONS[name]
    for seed in range(5):
        call, again = record.draw(at_random(seed)), record.draw(at_random(seed))
        assert str(call) == str(again)
        output, saved = record.module.forward(*call.arguments.values(), **call.options)
        record.module.backward(output, saved)


# What a call asks for

#: The arguments that are numbers and constants, so that they have no gradient.
CONSTANTS = {
    "weighted_mean": {"weights"},
    "logistic_loss": {"labels"},
    "weighted_next_token": {"weights"},
    "reward": {"margin"},
    "reinforce": {"advantages", "weights"},
    "clipped_policy": {"old_log_probs", "advantages", "weights"},
    "clipped_value": {"old_values", "returns", "weights"},
    "grpo": {"old_log_probs", "reference_log_probs", "advantages", "weights"},
    "distillation": {"weights"},
    "hidden_match": {"weights"},
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_constants_of_each_operation_are_known_and_all_else_has_a_gradient(name):
    record = OPERATIONS[name]
    constants = set()
    for seed in range(20):
        arguments = {
            name: argument
            for name, argument in record.draw(at_random(seed)).arguments.items()
            if isinstance(argument, np.ndarray) and argument.dtype == np.float64
        }
        constants |= arguments.keys() - differentiated(record.module, Call(arguments, {"wants_x": True})).keys()
    assert constants == CONSTANTS.get(name, set())


def test_a_call_asks_for_the_gradients_of_what_is_wanted():
    arguments = {"x": np.ones((2, 3)), "weight": np.ones((4, 3)), "bias": np.ones(4)}
    assert list(differentiated(linear, Call(arguments))) == ["x", "weight", "bias"]
    assert list(differentiated(linear, Call(arguments, {"wanted": ("bias",)}))) == ["bias"]


def test_a_call_asks_for_the_gradients_of_what_is_trained_and_of_x_where_it_wants_it():
    call = OPERATIONS["projection"].complex_step(at_random(0))[""]
    for options, names in (
        ({}, ["x", "parameters.weight", "parameters.bias"]),
        ({"wants_x": False}, ["parameters.weight", "parameters.bias"]),
        ({"trained": Only({"bias"})}, ["x", "parameters.bias"]),
    ):
        assert list(differentiated(layers.projection, call._replace(options=options))) == names
    ids = OPERATIONS["body"].special["one token"]
    assert "inputs" not in differentiated(body, ids), "ids have no gradient"


def test_a_new_record_is_checked_by_gradcheck_at_once(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "cube", COMPLETE)
    assert [case.name for case in own_gradients.cases(np.random.default_rng(0))][-1] == "cube"
    monkeypatch.setitem(OPERATIONS, "cube", COMPLETE._replace(complex_step="it compares numbers"))
    assert "cube" not in [case.name for case in own_gradients.cases(np.random.default_rng(0))]
