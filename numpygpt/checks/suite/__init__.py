"""The ladder of `numpygpt conform` as tests of pytest, for the continuous integration of whoever writes a port.

    pytest --pyargs numpygpt.checks.suite --adapter package.module:Adapter
    pytest --pyargs numpygpt.checks.suite --command "./my_port" --draws 20 --junitxml report.xml

Each rung of each case is a test. What the port says that it does not compute is skipped, and an expected failure is an
xfail.
"""

SUITE = "numpygpt.checks.suite"
