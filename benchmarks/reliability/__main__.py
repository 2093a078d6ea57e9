"""Writes benchmarks/reliability.md from the results that are there."""

from benchmarks.reliability.results import write_page

write_page()
