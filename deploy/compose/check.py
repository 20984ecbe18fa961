"""Checks compose.yaml: the schema of compose files, names and files that must be there, and, with a program,
that the binary takes the arguments of every service.

    check.py SCHEMA [--aquifer PROGRAM]
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import yaml

HERE = Path(__file__).parent


def check_schema(compose, schema):
    warnings.simplefilter("ignore", DeprecationWarning)
    import jsonschema

    validator = jsonschema.Draft7Validator(json.loads(Path(schema).read_text()))
    # The schema is older than the name of a project.
    document = {key: value for key, value in compose.items() if key != "name"}
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    assert not errors, "\n".join(errors)


def check_names(compose):
    for name, service in compose["services"].items():
        for other in service.get("depends_on", {}):
            assert other in compose["services"], f"{name} depends on {other}, which is not there"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (HERE / source).exists(), f"{name}: there is no {source}"
            else:
                assert source in compose["volumes"], f"{name}: {source} is no volume"
    targets = {target.split(":")[0] for job in yaml.safe_load((HERE / "prometheus.yml").read_text())["scrape_configs"]
               for static in job["static_configs"] for target in static["targets"]}
    ours = {name for name, service in compose["services"].items() if "AQUIFER_CLUSTER" in str(service)}
    assert targets == ours, f"Prometheus watches {targets}, and the cluster is {ours}"


def check_arguments(compose, aquifer):
    for name, service in compose["services"].items():
        if "AQUIFER_CLUSTER" not in str(service):
            continue
        command = [aquifer, *service["command"], "--check-config"]
        done = subprocess.run(command, env={**os.environ, **service["environment"]}, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("schema")
    parser.add_argument("--aquifer", help="the binary, for --check-config")
    options = parser.parse_args()
    compose = yaml.safe_load((HERE / "compose.yaml").read_text())
    check_schema(compose, options.schema)
    check_names(compose)
    if options.aquifer:
        check_arguments(compose, options.aquifer)
    print(f"compose: {len(compose['services'])} services, {'with' if options.aquifer else 'without'} --check-config")


try:
    main()
except AssertionError as error:
    sys.exit(f"compose: {error}")
