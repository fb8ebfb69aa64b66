"""`python -m gpuflow`: the command line."""

from gpuflow.cli import main

main()
