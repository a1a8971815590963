"""Loaded into the processes of a box under test: a fleet that follows in seconds, and crashes.

`AST_TEST_CRASHES`: name of the folder of a model that kills every worker which opens it, as a
driver might; the check on the CPU beside it passes.
"""

import os
import signal
import sys

if "forward" in sys.argv or "forward" in sys.orig_argv:
    from ast_stream.fleet import follower, report

    report.REPORT_EVERY_S = follower.TICK_S = 1.0
    follower._RETRY_S = (1.0, 5.0)
    follower._COUNT_EVERY_S = 1.0

_CRASHES = os.environ.get("AST_TEST_CRASHES")
if _CRASHES and "worker" in sys.orig_argv:

    def _crash(event: str, arguments: tuple[object, ...]) -> None:
        # the weights themselves are not opened through Python
        if event == "open" and f"{_CRASHES}/config.json" in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(_crash)
