"""The rules of the house that no linter knows."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "unweave"
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
NAMELESS = {"util", "utils", "common", "helper", "helpers", "misc", "tools", "manager"}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def tracked() -> list[Path]:
    """The files of the project: what git tracks, or all of them where there is no git."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if path.relative_to(ROOT).parts[0][0] != "."]
    return [path for path in found if path.is_file()]


FILES = tracked()
CODE = [path for path in FILES if path.suffix == ".py"]
OURS = [path for path in CODE if path.is_relative_to(PACKAGE)]


def place(path: Path, line: int | None = None) -> str:
    name = path.relative_to(ROOT).as_posix()
    return name if line is None else f"{name}:{line}"


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in OURS]


def test_there_is_something_to_hold_to_the_rules() -> None:
    assert len(OURS) > 20


def test_no_file_is_longer_than_one_can_read() -> None:
    long = {place(path): len(lines(path)) for path in CODE if len(lines(path)) > MOST_LINES}
    assert not long


def test_no_function_is_longer_than_a_screen() -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = {
        f"{place(path, node.lineno)} {node.name}": _lines_of_code(node)
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, functions) and _lines_of_code(node) > MOST_LINES_OF_A_FUNCTION
    }
    assert not long


def _lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines but for the docstring: a command's is its `--help`, a line or two for each option."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_the_rule_about_long_functions_counts_code_alone() -> None:
    function = ast.parse('def f(a):\n    """One.\n\n    Two.\n    """\n    b = a\n    return b')
    assert _lines_of_code(function.body[0]) == 3
    assert _lines_of_code(ast.parse("def f():\n    return 1").body[0]) == 2


def test_every_module_has_a_name_that_says_what_is_in_it() -> None:
    assert not [place(path) for path in OURS if {path.stem, path.parent.name} & NAMELESS]


def test_no_class_is_a_manager() -> None:
    found = [
        f"{place(path, node.lineno)} {node.name}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Manager", "Helper", "Util"))
    ]
    assert not found


def _imports(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module.split(".")[0]}
    return set()


def _runs_strangers_code(node: ast.AST) -> bool:
    """Whether a call would unpickle, or run code that comes with a model."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    if name in ("torch.load", "eval", "exec", "np.lib.format.read_array"):
        return True
    risky = {"allow_pickle", "trust_remote_code"}
    return any(
        keyword.arg in risky
        and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
        for keyword in node.keywords
    )


def test_nothing_opens_a_pickle_or_runs_what_comes_with_a_model() -> None:
    found = [
        f"{place(path, getattr(node, 'lineno', 0))}: {ast.unparse(node)[:80]}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if _imports(node) & UNPICKLERS or _runs_strangers_code(node)
    ]
    assert not found


@pytest.mark.parametrize(
    "code",
    ["torch.load(p)", "np.load(p, allow_pickle=True)", "eval(x)", "f(trust_remote_code=flag)"],
)
def test_the_rule_about_strangers_code_sees_it(code: str) -> None:
    assert any(_runs_strangers_code(node) for node in ast.walk(ast.parse(code)))
    assert not any(
        _runs_strangers_code(n) for n in ast.walk(ast.parse("np.load(p, allow_pickle=False)"))
    )


def test_nothing_is_left_for_later() -> None:
    mark = re.compile(r"\b(TODO|FIXME|XXX)\b")
    found = [
        place(path, number)
        for path in OURS
        for number, line in enumerate(lines(path), start=1)
        if mark.search(line)
    ]
    assert not found


def test_no_path_of_a_machine_is_written_down() -> None:
    homes = {ROOT, Path.home(), ROOT.parent} - {Path(ROOT.anchor)}
    places = [*(re.escape(str(home)) + "/" for home in homes), r"/home/\w", r"/Users/\w"]
    machine = re.compile(rf"(?<![\w.~-])({'|'.join(places)})")
    found = []
    for path in FILES:
        content = path.read_bytes()
        if b"\0" not in content and path != Path(__file__):
            text = content.decode("utf-8", "replace").splitlines()
            found += [place(path, n) for n, line in enumerate(text, 1) if machine.search(line)]
    assert not found


def test_every_link_in_the_documents_leads_somewhere() -> None:
    link = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)[^)]*\)")
    lost = []
    for path in (file for file in FILES if file.suffix == ".md"):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for match in link.finditer(text):
            target = match["target"].split("#")[0]
            outside = re.match(r"[a-z]+:", target)
            if target and not outside and not (path.parent / target).exists():
                lost.append(f"{place(path)} -> {target}")
    assert not lost
