"""What can be imported from where, and what such an import does not drag in."""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import isthmus

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(module.name for module in pkgutil.iter_modules(isthmus.__path__) if module.ispkg)
HEAVY = {"torch", "lightning", "optuna", "onnx", "sklearn", "plotly", "torchmetrics"}
UPSTREAM = {f"isthmus.{name}" for name in ("graph", "plan", "links", "split", "train", "study")}


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter loads for one statement."""
    code = f"import sys; old = set(sys.modules); {statement}; import json"
    code += "; print(json.dumps(sorted(set(sys.modules) - old)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


def offered(package: ModuleType) -> list[str]:
    """Return what a package offers by itself; `report` offers only its modules."""
    return getattr(package, "__all__", [])


@pytest.mark.parametrize("name", PACKAGES)
class TestEveryPackage:
    def test_names_what_it_offers_in_order_and_once(self, name):
        names = offered(importlib.import_module(f"isthmus.{name}"))
        # Constants, then classes, then functions, as the linter sorts them.
        order = sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
        assert list(names) == order
        assert len(set(names)) == len(names)

    def test_has_what_it_names(self, name):
        package = importlib.import_module(f"isthmus.{name}")
        assert [item for item in offered(package) if not hasattr(package, item)] == []

    def test_documents_what_it_offers(self, name):
        package = importlib.import_module(f"isthmus.{name}")
        assert package.__doc__
        things = [getattr(package, item) for item in offered(package)]
        assert [thing for thing in things if callable(thing) and not thing.__doc__] == []


def test_the_top_level_imports_nothing():
    loaded = {name for name in loaded_by("import isthmus") if name.startswith("isthmus")}
    assert loaded == {"isthmus"}


def test_a_worker_loads_no_compiler_and_no_trainer():
    loaded = loaded_by("import isthmus.run")
    assert "isthmus.run" in loaded
    assert loaded & HEAVY == set()
    assert loaded & UPSTREAM == set()


def test_only_training_itself_loads_lightning():
    """It takes seconds, and with it comes torch's compiler."""
    loaded = loaded_by("import isthmus.train, isthmus.study, isthmus.report, isthmus.compress")
    assert loaded & {"lightning", "torchmetrics"} == set()


def test_the_wire_needs_only_numpy():
    assert loaded_by("import isthmus.wire") & (HEAVY | UPSTREAM | {"isthmus.run"}) == set()


def test_every_dependency_names_the_file_that_needs_it():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in extras if name != "all")]
    for requirement in (requirement for group in groups for requirement in group):
        match = re.search(rf'"{re.escape(requirement)}",\s+# (.+)', text)
        assert match, f"{requirement} says not who needs it"
        for place in re.findall(r"isthmus/[\w./]*", match.group(1)):
            assert (ROOT / "src" / place).exists(), f"{requirement}: there is no {place}"
