"""The shape of the code: layers, imports that cost nothing, packaging, and calls that must not be in it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sbm_jax"
TOPS = {"kernels": ROOT / "kernels", "cli": ROOT / "cli"}

# Top to bottom. A module may import its own layer and the ones below.
LAYERS = (
    ("cli",),
    ("serve", "sweep"),
    ("pipeline",),
    ("plan", "plan_meaning", "plan_step"),
    ("stages",),
    ("report", "demo"),
    ("backbones", "sae", "images", "brain"),
    ("store",),
    (
        "kernels",
        "axes",
        "config",
        "config_meaning",
        "config_section",
        "config_text",
        "errors",
        "interrupt",
        "mesh",
        "processes",
        "progress",
        "provenance",
        "statistics",
    ),
)
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Dotted name -> file, for all source files; symlinked folders once, under their names in the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] not in (*TOPS, "bench"):  # benchmarks may import anything, other engines too
            found[dotted(relative)] = path
    for name, folder in TOPS.items():
        for path in sorted(folder.rglob("*.py")):
            found[dotted(Path(name) / path.relative_to(folder))] = path
    return {name: path for name, path in found.items() if "__pycache__" not in path.parts}


def dotted(relative: Path) -> str:
    parts = list(relative.with_suffix("").parts)
    return ".".join(["sbm_jax", *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = modules()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path, *, with_type_checking: bool = True) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in a file, in functions too; members as `module.member`."""

    def walk(node: ast.AST) -> Iterator[tuple[int, str]]:
        if not with_type_checking and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(tree(path))


def part(name: str) -> str | None:
    """`sbm_jax.store.arrays.open_array` -> `store`; None for the package itself and for other libraries."""
    words = name.split(".")
    return words[1] if words[0] == "sbm_jax" and len(words) > 1 and words[1] in LEVEL else None


def test_there_are_modules_to_look_at():
    assert len(MODULES) > 80
    assert {name.split(".")[1] for name in MODULES if name != "sbm_jax"} == set(LEVEL)


@pytest.mark.parametrize("name", sorted(set(LEVEL) - {"errors", "axes"}))
def test_imports_point_down(name):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} imports {target}"
        for module, path in MODULES.items()
        if part(module) == name
        for line, target in imports(path)
        if (other := part(target)) is not None and LEVEL[other] < LEVEL[name]
    ]
    assert wrong == []


def test_kernels_and_the_smallest_modules_import_nothing_else_of_this_project():
    allowed = {
        "kernels": {"kernels"},
        "errors": set(),
        "axes": set(),
        "interrupt": set(),
        "progress": {"interrupt", "processes"},
    }
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {target}"
        for module, path in MODULES.items()
        if (own := part(module)) in allowed
        for line, target in imports(path)
        if target.startswith("sbm_jax") and part(target) not in allowed[own]
    ]
    assert wrong == []


def test_parts_of_one_layer_do_not_import_each_other_in_circles():
    """Within a layer an edge may go one way only."""
    edges: dict[tuple[str, str], str] = {}
    for module, path in MODULES.items():
        for line, target in imports(path):
            one, two = part(module), part(target)
            if one and two and one != two and LEVEL[one] == LEVEL[two]:
                edges[one, two] = f"{path.relative_to(ROOT)}:{line}: {module} imports {target}"
    assert [text for (one, two), text in edges.items() if (two, one) in edges] == []


def stage_modules() -> list[str]:
    return [
        module
        for module, path in MODULES.items()
        if part(module) == "stages" and any(isinstance(n, ast.FunctionDef) and n.name == "run" for n in tree(path).body)
    ]


def test_stages_never_import_each_other():
    stages = stage_modules()
    assert {m.rsplit(".", 1)[1] for m in stages} >= {
        "dataset", "betas", "extract", "train", "encode", "align", "rsa", "roi", "layers", "recovery", "report",
    }  # fmt: skip
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{line}: imports {target}"
        for module in stages
        for line, target in imports(MODULES[module])
        if any(target == other or target.startswith(other + ".") for other in stages if other != module)
    ]
    assert wrong == []


def test_the_pipeline_names_exactly_the_stages():
    from sbm_jax.plan import STAGES

    assert sorted(STAGES) == sorted(m.rsplit(".", 1)[1] for m in stage_modules())


def test_the_report_never_imports_jax():
    jaxish = ("jax", "flax", "optax", "orbax")
    for module, path in MODULES.items():
        if part(module) == "report" or module.startswith("sbm_jax.stages.report"):
            assert [t for _, t in imports(path) if t.split(".")[0] in jaxish] == [], module


# What importing loads ------------------------------------------------------------------------------------------------


def loaded(statement: str, *names: str) -> set[str]:
    """Which of the top-level packages `names` are in sys.modules after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint('LOADED', *(n for n in {names!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(next(line for line in done.stdout.splitlines() if line.startswith("LOADED")).split()[1:])


HEAVY = ("jax", "flax", "optax", "orbax", "torch", "transformers")


@pytest.mark.parametrize(
    "statement",
    [
        "import sbm_jax",
        "import sbm_jax.kernels",
        "import sbm_jax.config",
        "import sbm_jax.store.store, sbm_jax.store.lock, sbm_jax.store.buffer",
        "import sbm_jax.report.page",
        "import sbm_jax.report.figures",
        "import sbm_jax.stages.context",
        "import sbm_jax.pipeline",
        "import sbm_jax.demo.scenes",
        "import sbm_jax.brain.dataset",
        "import sbm_jax.images",
        "import sbm_jax.cli.main",
    ],
)
def test_importing_starts_no_jax(statement):
    assert loaded(statement, *HEAVY) == set()


def test_importing_the_report_stage_starts_no_jax():
    assert loaded("import sbm_jax.stages.report", *HEAVY) == set()


def test_calling_a_kernels_reference_starts_no_jax():
    call = "import numpy as np, sbm_jax.kernels as k\nk.rdm(np.eye(3), implementation='reference')"
    assert loaded(call, *HEAVY) == set()


@pytest.mark.parametrize("words", ["['--help']", "['--version']", "['run', '--help']", "['align', '--help']"])
def test_help_loads_neither_jax_nor_numpy(words):
    statement = f"""
import sys
sys.argv = ['sbm-jax', *{words}]
from sbm_jax.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert loaded(statement, "numpy", "scipy", "pydantic", "tensorstore", "PIL", *HEAVY) == set()


# Packaging -----------------------------------------------------------------------------------------------------------


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_list_of_packages_is_the_tree():
    listed = pyproject()["tool"]["setuptools"]["packages"]
    real = {name for name, path in MODULES.items() if path.name == "__init__.py"} | {"sbm_jax.bench"}
    assert sorted(listed) == sorted(real)
    # A folder with modules but no __init__.py would be missing from the wheel.
    folders = {name.rsplit(".", 1)[0] for name, path in MODULES.items() if path.name != "__init__.py"}
    assert folders <= real


def test_the_top_level_folders_are_linked_into_the_package():
    mapping = pyproject()["tool"]["setuptools"]["package-dir"]
    names = (*TOPS, "bench")
    assert mapping == {f"sbm_jax.{name}": name for name in names}
    for name in names:
        link = PACKAGE / name
        assert link.is_symlink() and str(link.readlink()) == f"../{name}"
        assert link.resolve() == ROOT / name


def test_data_files_are_matched_by_package_data():
    data = pyproject()["tool"]["setuptools"]["package-data"]
    matched = {p for package, globs in data.items() for g in globs for p in (ROOT / package.replace(".", "/")).glob(g)}
    present = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert sorted(map(str, present - matched)) == []


def test_every_import_is_a_declared_dependency():
    project = pyproject()["project"]
    declared = {re.split(r"[<>=\[; ]", d)[0].lower().replace("_", "-") for d in project["dependencies"]}
    names = {"PIL": "pillow", "yaml": "pyyaml", "orbax": "orbax-checkpoint"}
    used = {target.split(".")[0]: path.relative_to(ROOT) for path in MODULES.values() for _, target in imports(path)}
    # torch opens other libraries' checkpoints, and pyarrow writes a sweep's table; both are asked for by name where missing.
    ours = {"sbm_jax", "__future__", "torch", "pyarrow"}
    wrong = {
        f"{name} (in {path})"
        for name, path in used.items()
        if name not in sys.stdlib_module_names
        and name not in ours
        and names.get(name, name).lower().replace("_", "-") not in declared
    }
    assert wrong == set()


# What must not be in it ----------------------------------------------------------------------------------------------

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
                   "yaml.full_load", "marshal.loads", "tempfile.mktemp"}  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "telnetlib"}
NETWORK = {"requests", "urllib.request", "http.client", "socket", "ftplib", "httpx", "aiohttp"}


def call_name(node: ast.Call) -> str:
    return ast.unparse(node.func)


def test_nothing_dangerous_is_called():
    wrong = []
    for path in MODULES.values():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            place = f"{path.relative_to(ROOT)}:{node.lineno}: {call_name(node)}"
            if call_name(node) in FORBIDDEN_CALLS:
                wrong.append(place)
            if call_name(node) == "torch.load":
                safe = [k.value for k in node.keywords if k.arg == "weights_only"]
                if not (safe and isinstance(safe[0], ast.Constant) and safe[0].value is True):
                    wrong.append(place)
            wrong += [
                f"{place}({k.arg}=...)"
                for k in node.keywords
                if k.arg in ("allow_pickle", "shell", "trust_remote_code")
                and not (isinstance(k.value, ast.Constant) and k.value.value is False)
            ]
            # np.load refuses pickles unless told otherwise; the code says so where it reads files of others.
            if call_name(node) in ("np.load", "numpy.load"):
                assert not any(k.arg == "allow_pickle" and k.value.value for k in node.keywords), place
    assert wrong == []


def test_no_module_that_unpickles_or_reaches_the_network_is_imported():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {target}"
        for path in MODULES.values()
        for line, target in imports(path)
        for bad in FORBIDDEN_MODULES | NETWORK
        if target == bad or target.startswith(bad + ".")
    ]
    assert wrong == []


def test_hugging_face_is_asked_for_local_files_only():
    calls = [
        (path, node)
        for path in MODULES.values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and call_name(node).split(".")[-1] in {"snapshot_download", "hf_hub_download", "from_pretrained"}
    ]
    assert calls
    for path, node in calls:
        local = [k.value for k in node.keywords if k.arg == "local_files_only"]
        assert len(local) == 1 and ast.unparse(local[0]) == "True", f"{path.relative_to(ROOT)}:{node.lineno}"


def test_no_global_random_state_and_no_clock_in_results():
    """Results depend on seeds alone. Progress and lock files may look at the clock."""
    legacy = re.compile(r"^(np|numpy)\.random\.(seed|rand|randn|randint|random|normal|choice|permutation|shuffle)$")
    clock = {"time.time", "datetime.now", "datetime.datetime.now", "datetime.utcnow", "uuid.uuid4", "hash", "id"}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {call_name(node)}"
        for path in MODULES.values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and (
            legacy.match(call_name(node))
            or call_name(node) in clock
            or (call_name(node).endswith("default_rng") and not node.args)
        )
    ]
    assert wrong == []


def test_every_module_says_what_it_is_for_and_stays_short():
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        # An __init__.py may be empty.
        assert not text or ast.get_docstring(tree(path)), f"{name} has no docstring"
        assert len(text.splitlines()) < 400, f"{name} has {len(text.splitlines())} lines"


def test_asserts_do_not_check_input():
    """`python -O` drops them: an assert in the package only tells the type checker what is known."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path in MODULES.values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Assert) and "is not None" not in ast.unparse(node.test)
    ]
    assert found == []
