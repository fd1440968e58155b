"""Lines of code by room, docstrings, comments and blanks left out: ``python -m tools.lines``."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "riba"
SKIPPED = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def code_lines(path: Path) -> int:
    """Lines of one file that hold code."""
    text = path.read_text(encoding="utf-8")
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docstrings |= set(range(node.lineno, node.end_lineno + 1))
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SKIPPED:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def rooms() -> dict[str, int]:
    """Lines of code of each folder of the package, and of the modules beside them."""
    counts: dict[str, int] = {}
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE).parts
        room = inside[0] if len(inside) > 1 else "beside them"
        counts[room] = counts.get(room, 0) + code_lines(path)
    return counts


def main() -> None:
    """Print a line a room, the largest first."""
    counts = rooms()
    for room, count in sorted(counts.items(), key=lambda entry: -entry[1]):
        print(f"{count:6,d}  {room}")
    print(f"{sum(counts.values()):6,d}  altogether")


if __name__ == "__main__":
    main()
