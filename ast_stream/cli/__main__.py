"""`python -m ast_stream.cli COMMAND`: the command line without an installed script."""

from ast_stream.cli.app import main

main()
