"""`python -m metalearn` is `metalearn`."""

from metalearn.cli import main

main()
