"""Entry point: `python services/worker.py …` is `ast-stream worker …`."""

import sys

sys.argv[:1] = ["ast-stream", "worker"]

from ast_stream.cli.app import main  # noqa: E402 - importing it reads the command from sys.argv

main()
