"""The rooms import each other one way only, and light commands stay light."""

import ast
import subprocess
import sys

import pytest

from .conftest import DEMO, REPOSITORY

ORDER = ("kernels", "loaders", "train", "slurm", "app")
FILES = sorted(path for room in ORDER for path in (REPOSITORY / room).rglob("*.py"))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_room_imports_only_itself_and_rooms_to_its_left(path):
    allowed = ORDER[: ORDER.index(path.relative_to(REPOSITORY).parts[0]) + 1]
    for name in _imports(path):
        root, *rest = name.split(".")
        assert root not in ORDER, f"{path} imports {name}; say anyecg.{name}"
        assert root != "anyecg" or rest[0] in allowed, f"{path} imports {name}, a room to its right"


@pytest.mark.parametrize("room", ORDER)
def test_init_files_are_empty(room):
    assert (REPOSITORY / room / "__init__.py").read_text() == ""


def _loaded_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n', *sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # What the code itself prints stands above.
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {
    "numpy", "numba", "torch", "nvidia", "deepspeed", "mpi4py", "h5py", "scipy", "matplotlib", "polars", "pyarrow",
    "sklearn", "pandas", "onnx",
}  # fmt: skip


def test_help_loads_no_heavy_package():
    code = "from anyecg.app.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert not (HEAVY | {"pydantic"}) & _loaded_by(code)


@pytest.mark.parametrize(
    "code",
    [
        "import anyecg.app.config",
        "import anyecg.app.stages",
        f"from anyecg.app.cli import main; main(['config', {str(DEMO / 'config.toml')!r}])",
    ],
    ids=["config", "stages", "command"],
)
def test_the_config_loads_no_heavy_package(code):
    loaded = _loaded_by(code)
    assert "pydantic" in loaded
    assert not HEAVY & loaded


def test_kernels_load_neither_torch_nor_files():
    names = [path.stem for path in (REPOSITORY / "kernels").glob("*.py") if path.stem != "__init__"]
    code = "\n".join(f"import anyecg.kernels.{name}" for name in names)
    assert not {"torch", "h5py", "mpi4py", "logging.handlers"} & _loaded_by(code)
