#!/usr/bin/env python3
"""Holds JSON against the schemas of docs/schema: check-json.py SCHEMA.json FILE [SCHEMA.json FILE…]

A file is one document, or one per line. What is wrong is said with its place; exit code 1. Needs PyPI's jsonschema.
"""

import json
import sys

from jsonschema import Draft202012Validator


def documents(text):
    """One document, or one per line."""
    try:
        return [json.loads(text)]
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines()]


def main():
    files = sys.argv[1:]
    if not files or len(files) % 2:
        sys.exit(__doc__)
    wrong = checked = 0
    for schema, name in zip(files[::2], files[1::2]):
        with open(schema, encoding="utf-8") as file:
            schema = json.load(file)
        Draft202012Validator.check_schema(schema)
        validator = Draft202012Validator(schema)
        with open(name, encoding="utf-8") as file:
            for document in documents(file.read()):
                checked += 1
                for error in validator.iter_errors(document):
                    wrong += 1
                    print(f"{name}: {error.json_path}: {error.message[:300]}")
    print(f"{checked} documents, {wrong} faults")
    sys.exit(1 if wrong or not checked else 0)


main()
