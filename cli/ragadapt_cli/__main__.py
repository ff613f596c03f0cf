"""`python -m ragadapt_cli`, where the console script is not on the path."""

from ragadapt_cli.main import main

main()
