"""Entry point: `python services/alerts.py …` is `ast-stream alerts …`."""

import sys

sys.argv[:1] = ["ast-stream", "alerts"]

from ast_stream.cli.app import main  # noqa: E402 - importing it reads the command from sys.argv

main()
