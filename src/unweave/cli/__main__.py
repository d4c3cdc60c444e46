"""`python -m unweave.cli` is `unweave`."""

from unweave.cli.app import main

main()
