#!/usr/bin/env python3
"""Asks the question of docs/matrix.md of a matrix' Parquet file, and prints the rows: matrix-rows.py FILE

Needs PyPI's duckdb.
"""

import pathlib
import re
import sys

import duckdb

if len(sys.argv) != 2:
    sys.exit(__doc__)
page = (pathlib.Path(__file__).parent.parent / "docs" / "matrix.md").read_text(encoding="utf-8")
question = re.search(r"```sql\n(.*?)```", page, re.DOTALL)[1].replace("'target/matrix/matrix.parquet'", f"'{sys.argv[1]}'")
duckdb.sql("SET threads = 1")
answer = duckdb.sql(question)
print("\t".join(answer.columns))
for row in answer.fetchall():
    print("\t".join(map(str, row)))
