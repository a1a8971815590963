"""Entry point: `python services/capture.py …` is `ast-stream capture …`."""

import sys

sys.argv[:1] = ["ast-stream", "capture"]

from ast_stream.cli.app import main  # noqa: E402 - importing it reads the command from sys.argv

main()
