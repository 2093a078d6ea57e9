"""The long forms of the reliability promises, each one command; the quick ones are in the default tests.

python -m benchmarks.reliability.NAME         run one of them, keep its result, write benchmarks/reliability.md
python -m benchmarks.reliability              only write the page
"""
