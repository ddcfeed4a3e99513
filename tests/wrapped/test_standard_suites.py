"""LangChain's standard suites for chat models end the same for a wrapped model as for the bare one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from parcels import conversations

HERE = Path(__file__).parent
SUITES = "Unit", "Integration"
OPTIONS = "-q -p no:cacheprovider --disable-socket --allow-unix-socket --benchmark-disable".split()
# A stream is timed on a recorded vendor's answer; here it is only run.
UNTIMED = ["-W", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The outcome of every test by class, and where each class has recorded; no socket was open to them."""
    folder = tmp_path_factory.mktemp("suites")
    report = folder / "report.xml"
    environment = {**os.environ, "SUITES_HOME": str(folder), "CONTEXTWRAP_RAISE": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", *OPTIONS, *UNTIMED, f"--junitxml={report}", str(HERE / "suites.py")]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    outcomes: dict[str, dict[str, str]] = {}
    for case in ET.parse(report).iter("testcase"):
        child = case.find("*")
        outcome = "passed" if child is None else child.tag
        outcomes.setdefault(case.get("classname", "").rpartition(".")[2], {})[case.get("name", "")] = outcome
        if outcome in {"failure", "error"}:
            print(case.get("classname"), case.get("name"), outcome, child.get("message"))  # noqa: T201  what pytest shows on failure
    print({name: Counter(tests.values()) for name, tests in outcomes.items()})  # noqa: T201  likewise
    return outcomes, folder


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("way", ["Class", "Instance"])
def test_a_wrapped_model_passes_where_the_bare_one_does(ran, way, suite):
    """Each standard test has the same outcome, wrapped as a class or as an instance, as it has bare."""
    outcomes, _ = ran
    assert outcomes[f"TestWrapped{way}{suite}"] == outcomes[f"TestBare{suite}"]


@pytest.mark.parametrize("suite", SUITES)
def test_the_bare_model_is_worth_comparing_with(ran, suite):
    """The model passes its suite, but for files from the network and a place in LangChain's own registry."""
    outcomes, _ = ran
    bare = outcomes[f"TestBare{suite}"]
    assert {name for name, outcome in bare.items() if outcome not in {"passed", "skipped"}} == set()
    inputs = {"test_anthropic_inputs", "test_audio_inputs", "test_image_inputs", "test_pdf_inputs"}
    skipped = {name for name, outcome in bare.items() if outcome == "skipped"}
    assert skipped <= inputs | {"test_image_tool_message", "test_pdf_tool_message", "test_serdes"}


@pytest.mark.parametrize("way", ["Class", "Instance"])
def test_the_suites_calls_are_recorded(ran, way):
    """What the suite asked of the wrapped model is on disk, the same for both ways; of the bare one nothing is."""
    _, folder = ran
    assert conversations(folder / "TestBareIntegration") == []
    recorded = conversations(folder / f"TestWrapped{way}Integration")
    asked = Counter(one.messages[0].message for one in recorded)
    assert asked["Hello"] >= 12
    assert asked["What is the value of magic_function(3)? Use the tool."] == 6
    assert asked["Tell me a joke about cats."] >= 12
