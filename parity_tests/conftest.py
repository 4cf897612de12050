"""The whole suite: annotations of shapes are checked at each call, and when a named tuple is made.

hypothesis is deterministic unless told otherwise.
"""

from jaxtyping import install_import_hook

install_import_hook(["numpygpt", "torchgpt"], "beartype.beartype")  # before anything imports them

from hypothesis import HealthCheck, settings  # noqa: E402

from parity_tests.fields import check_fields  # noqa: E402

check_fields()

# "suite" is what `make test` and CI run: deterministic. "quick" is for the inner loop; "long" searches at random, for a
# person.
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=25, database=None)
settings.register_profile("quick", settings.get_profile("suite"), max_examples=5)
settings.register_profile(
    "long", deadline=None, max_examples=10_000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
