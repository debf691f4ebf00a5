"""Files and functions stay short enough to be read."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "wan_ray"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def test_no_file_is_longer_than_400_lines() -> None:
    long = {str(p): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > MAX_FILE_LINES}
    assert long == {}


def test_no_function_is_longer_than_60_lines() -> None:
    long = [
        f"{path.name}:{node.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_error_is_of_one_tree_and_survives_pickling() -> None:
    import pickle

    from wan_ray import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    assert len(classes) > 5
    for cls in classes:
        assert issubclass(cls, errors.WanRayError)
        assert str(pickle.loads(pickle.dumps(cls("why")))) == "why"
        assert cls.__name__ in (errors.__doc__ or "")
