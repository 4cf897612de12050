"""The properties that catch the planted bugs, as tests for scripts/mutation_run.py: each takes a fraction of a second.

pytest collects a file of this name only if it is named; the suite has the same in test_planted_bugs.py. What the
properties compare with is computed when this file is imported: before the first change, and once for all forks.
"""

import pytest

from parity_tests import (
    adapted_properties,
    adapter_properties,
    numeric_properties,
    objective_properties,
    optimizer_properties,
    precision_properties,
    properties,
    tuning_properties,
)

PROPERTIES = {
    **properties.PROPERTIES,
    **adapter_properties.PROPERTIES,
    **adapted_properties.PROPERTIES,
    **optimizer_properties.PROPERTIES,
    **numeric_properties.PROPERTIES,
    **precision_properties.PROPERTIES,
    **objective_properties.PROPERTIES,
    **tuning_properties.PROPERTIES,
}

adapter_properties.logits_of_mixed()
adapter_properties.folders_of_peft()
for config in (properties.CONFIG, properties.TIED):
    properties.reference(config)
    adapter_properties.reference(config.tie_weights)
properties.reference_model()
precision_properties.references()
objective_properties.references()


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_sound_code_has_every_property(name):
    PROPERTIES[name]()
