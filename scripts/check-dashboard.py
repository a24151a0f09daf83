#!/usr/bin/env python3
"""Asks a Prometheus each expression of a Grafana dashboard: check-dashboard.py DASHBOARD.json http://HOST:PORT

Each must have data. Grafana's own variables are put in as it does. Only expressions whose metric can well be zero may be zero; none may be
empty.
"""

import json
import sys
import time
import urllib.parse
import urllib.request


def ask(server, path, **parameters):
    with urllib.request.urlopen(f"{server}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as reply:
        return json.load(reply)["data"]


def main():
    dashboard, server = sys.argv[1:]
    with open(dashboard, encoding="utf-8") as file:
        dashboard = json.load(file)
    now, empty, asked = time.time(), 0, 0
    instances = ask(server, "label/instance/values", **{"match[]": "vnic_device_connected"})
    print(f"variable instance: {', '.join(instances)}")
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "5s")
            series = ask(server, "query_range", query=expression, start=now - 300, end=now, step=1)["result"]
            values = [float(value) for one in series for _, value in one["values"]]
            values = [value for value in values if value == value]
            asked += 1
            empty += not values
            what = f"{len(series)} series, {len(values)} values, at most {max(values):.6g}" if values else "NO DATA"
            print(f"{panel['title']}: {target['expr']}: {what}")
    print(f"{asked} expressions, {empty} without data")
    sys.exit(1 if empty or not asked or not instances else 0)


if len(sys.argv) != 3:
    sys.exit(__doc__)
main()
