"""Whatever fits our OpenAPI document, and much that does not, gets an answer that is in it.

A short run of what `schemathesis run http://localhost:8000/openapi.json` does at length.
"""

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

# That bytes are an image, and boxes inside of it, no schema can say.
UNSAYABLE = [positive_data_acceptance]


def test_every_answer_is_a_documented_one(served):
    load_all_checks()
    document = schemathesis.openapi.from_url(f"{served}/openapi.json")
    statuses = set()
    for operation in (found.ok() for found in document.get_all_operations()):
        # What takes no parameters has nothing that could be wrong.
        modes = GenerationMode if operation.path == "/pose" else [GenerationMode.POSITIVE]
        for mode in modes:

            @settings(
                max_examples=15 if operation.path == "/pose" else 2,
                derandomize=True,
                deadline=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                response = case.call_and_validate(excluded_checks=UNSAYABLE)
                statuses.add(response.status_code)

            check()
    # It has got as far as that, both ways.
    assert statuses >= {200, 422}
