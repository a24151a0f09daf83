#!/usr/bin/env python3
"""Compares two outputs of parquet-questions.py: the same questions, the same answers, numbers to one part in a thousand."""

import json
import sys


def answers(name):
    """The rows of each question; of a list that is cut off, the order among equals is nobody's."""
    found, heading = {}, None
    with open(name, encoding="utf-8") as file:
        for line in file:
            if line.startswith("## "):
                heading = line.strip()
                found[heading] = []
            elif line.startswith("{"):
                found[heading].append(json.loads(line))
    return found


def same(one, other):
    try:
        one, other = float(one), float(other)
        return abs(one - other) <= 0.001 * max(abs(one), abs(other), 1)
    except (TypeError, ValueError):
        return one == other


def main():
    first, second = map(answers, sys.argv[1:])
    wrong = 0 if first.keys() == second.keys() and first else 1
    for heading, rows in first.items():
        others = second.get(heading, [])
        fine = len(rows) == len(others) and all(
            one.keys() == other.keys() and all(same(one[key], other[key]) for key in one) for one, other in zip(rows, others)
        )
        wrong += not fine
        print(f"{heading}: {len(rows)} rows, {'the same' if fine else 'ANOTHER ANSWER'}")
    sys.exit(1 if wrong else 0)


main()
