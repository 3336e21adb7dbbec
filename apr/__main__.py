"""`python -m apr`: the same as `apr`."""

from apr.cli.main import main

main()
