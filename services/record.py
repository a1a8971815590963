"""Entry point: `python services/record.py …` is `ast-stream record …`."""

import sys

sys.argv[:1] = ["ast-stream", "record"]

from ast_stream.cli.app import main  # noqa: E402 - importing it reads the command from sys.argv

main()
