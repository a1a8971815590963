"""Entry point: `python services/web.py …` is `ast-stream web …`."""

import sys

sys.argv[:1] = ["ast-stream", "web"]

from ast_stream.cli.app import main  # noqa: E402 - importing it reads the command from sys.argv

main()
