"""The setup of the whole suite: annotations of shapes are checked at each call, and when a named tuple is made.

hypothesis is deterministic unless it is told otherwise.
"""

import jaxtyping
import pytest

from parity_tests.annotations import check_annotations

check_annotations("numpygpt", "torchgpt")  # before anything imports them

from hypothesis import HealthCheck, settings  # noqa: E402

from parity_tests.fields import check_fields  # noqa: E402

check_fields()

# "suite" is what `make test` and CI run; it is deterministic. "quick" is for the inner loop. "long" searches at random,
# when a person wants it.
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=25, database=None)
settings.register_profile("quick", settings.get_profile("suite"), max_examples=5)
settings.register_profile(
    "long", deadline=None, max_examples=10_000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_collection_modifyitems(config, items):
    """Leave out what takes minutes, unless it is asked for: by -m, or by its name."""
    if "long_form" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker("long_form")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def without_checks_of_annotations():
    """For tests that take whole steps many times, and for bugs that must be caught by what they compute."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def unchecked(monkeypatch):
    """For a test of files with anything in them, which the annotations of functions that read it forbid."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def each_reference_is_made_once(monkeypatch):
    """`numpygpt conform` makes the trace of each case once for all tests of a process."""
    from numpygpt.checks.conform import judging
    from parity_tests import ports

    monkeypatch.setattr(judging, "reference", ports.once)


@pytest.fixture
def undiagnosed(monkeypatch):
    """`numpygpt conform` looks for no cause, which takes long under the checks of annotations."""
    from numpygpt.checks.conform import evidence

    monkeypatch.setattr(evidence, "diagnose", lambda *arguments: [])
