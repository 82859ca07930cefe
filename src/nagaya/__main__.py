"""``python -m nagaya`` is the command line."""

from nagaya.cli.main import main

main()
