"""The outcome as JUnit XML, which continuous integration reads: a suite for each case, a test for each rung."""

from xml.etree import ElementTree

from numpygpt.checks.conform.climbing import Climb
from numpygpt.checks.conform.judging import BAD, PASSED, Outcome


def junit(climb: Climb) -> str:
    """The XML. What is neither passed nor failed counts as skipped, with its reason; so does an expected failure."""
    suites = ElementTree.Element("testsuites", name="numpygpt conform")
    for outcome in climb.outcomes:
        evidence = climb.evidence.get(outcome.case.name)
        suites.append(_suite(outcome, "" if evidence is None else "\n".join(evidence.lines)))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _suite(outcome: Outcome, evidence: str) -> ElementTree.Element:
    """The evidence stands in the failure of the rung of the first wrong tensor, or of each rung without an answer."""
    states = [rung.state for rung in outcome.rungs.values()]
    suite = ElementTree.Element(
        "testsuite",
        name=outcome.case.name,
        tests=str(len(states)),
        failures=str(sum(state in BAD for state in states)),
        skipped=str(sum(state not in (PASSED, *BAD) for state in states)),
        errors="0",
        time=f"{outcome.seconds:.3f}",
    )
    for name, rung in outcome.rungs.items():
        test = ElementTree.SubElement(suite, "testcase", classname=outcome.case.name, name=name, time="0")
        if rung.state in BAD:
            failure = ElementTree.SubElement(test, "failure", message=rung.says, type=rung.state)
            failure.text = evidence if rung.first == outcome.first else None
        elif rung.state != PASSED:
            ElementTree.SubElement(test, "skipped", message=f"{rung.state}: {rung.says}")
    return suite
