#!/usr/bin/env python3
"""Asks the questions of docs/parquet.md: parquet-questions.py duckdb|spark CHAINS TRANSFERS

CHAINS is the folder of `vnic trace --parquet`, or one above several machines'; TRANSFERS the file or folder of `vnic report --parquet`.
Needs PyPI's duckdb, or pyspark and a Java. Prints each question's answer as lines of JSON behind its heading.
"""

import json
import pathlib
import re
import sys

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "parquet.md"


def blocks(engine):
    """The statements of the page for this engine, each with the heading that it stands under."""
    heading, fence = "", None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if fence is None and line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("```"):
            if fence is not None:
                if fence[0] in ("sql", f"sql {engine}"):
                    yield heading, "\n".join(fence[1:])
                fence = None
            else:
                fence = [line[3:].strip()]
        elif fence is not None:
            fence.append(line)


def duckdb_engine():
    import duckdb

    connection = duckdb.connect()

    def ask(statement):
        answer = connection.sql(statement)
        return [] if answer is None else [dict(zip(answer.columns, row)) for row in answer.fetchall()]

    return ask


def spark_engine():
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.master("local[2]").appName("vnic").config("spark.ui.enabled", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return lambda statement: [row.asDict() for row in spark.sql(statement).collect()]


def main():
    engine, chains, transfers = sys.argv[1:]
    ask = {"duckdb": duckdb_engine, "spark": spark_engine}[engine]()
    asked = 0
    for heading, text in blocks(engine):
        text = text.replace("'trace", f"'{chains}").replace("'transfers.parquet'", f"'{transfers}'")
        for statement in filter(None, map(str.strip, re.split(r";\s*(?:\n|$)", text))):
            rows = ask(statement)
            if statement.startswith("SELECT"):
                asked += 1
                print(f"## {heading}")
                for row in rows:
                    print(json.dumps(row, default=str))
    print(f"{asked} questions asked of {engine}")


if len(sys.argv) != 4 or sys.argv[1] not in ("duckdb", "spark"):
    sys.exit(__doc__)
main()
