"""Entry point: `python services/run.py …` is `ast-stream run …`."""

import sys

sys.argv[:1] = ["ast-stream", "run"]

from ast_stream.cli.app import main  # noqa: E402 - importing it reads the command from sys.argv

main()
