"""The direction of knowledge (DESIGN section 2): cli -> pipelines -> extract | stores | heads, which never meet."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("extract", "stores", "heads", "pipelines")
COMMANDS = {"commands", "cli"}
MAY_IMPORT = {"extract": {"extract"}, "stores": {"stores"}, "heads": {"heads"}, "pipelines": set(PACKAGES)}


def imported_packages(path: Path) -> set[str]:
    """Our own packages that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found & {*PACKAGES, *COMMANDS}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_know_only_what_they_may(package):
    for path in (ROOT / package).rglob("*.py"):
        assert imported_packages(path) <= MAY_IMPORT[package], path


@pytest.mark.parametrize(
    "module", ["stores", "extract", "extract.datasets", "extract.networks", "heads", "pipelines", "cli"]
)
def test_import_needs_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_reading_a_store_needs_no_torch():
    code = "import sys, stores.reader, stores.maintain, stores.clip_dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_extraction_keeps_what_the_heads_read():
    """`--for HEAD` is planned without importing torch, so the planner has a table of its own."""
    from heads import get_head
    from pipelines.request import KEEP_FOR_HEAD

    for name, kept in KEEP_FOR_HEAD.items():
        reads = get_head(name).reads
        assert set(kept) == {array for role in reads if role != "objects" for array in reads[role]}, name
