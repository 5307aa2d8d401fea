"""CodeAlpaca: a JSON list of instruction, input and output, all of whose code runs."""

from __future__ import annotations

import ast
import doctest
from collections.abc import Iterator
from pathlib import Path
from random import Random

from samples.files import TEXT, cells, sections, seeded, words, write_json

Row = dict[str, str]
MISTAKES = (
    (" + ", " - "),
    (" - ", " + "),
    ("<=", "<"),
    (" < ", " > "),
    (" > ", " < "),
    ("==", "!="),
    ("max(", "min("),
    ("% 2 == 0", "% 2 == 1"),
    ("[::-1]", ""),
    ("range(2,", "range(1,"),
    ("reverse=True", "reverse=False"),
    ("//= 2", "//= 3"),
    ("True", "False"),
)


def row(instruction: str, given: str, output: str) -> Row:
    return {"instruction": instruction, "input": given, "output": output}


def fails(code: str, examples: list[doctest.Example]) -> bool:
    """Whether code with a mistake gives another result (or none) for an example."""
    scope: dict[str, object] = {}
    exec(code, scope)
    try:
        return any(repr(eval(e.source, scope)) != e.want.strip() for e in examples)
    except (IndexError, ValueError, TypeError, ZeroDivisionError, KeyError):
        return True


def without_docstring(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> str:
    docstring = node.body[0]
    head = lines[node.lineno - 1 : docstring.lineno - 1]
    body = lines[docstring.end_lineno : node.end_lineno]
    return "".join([*head, *body]).replace(":\n\n", ":\n", 1).rstrip()


def function_rows(rng: Random) -> Iterator[Row]:
    """Rows of five kinds: write it, run it, explain it, document it, repair it."""
    source = (TEXT / "functions.py").read_text("utf-8")
    lines = source.splitlines(keepends=True)
    tree = ast.parse(source)
    modules = {
        alias.name: ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        summary, asked, *_ = (ast.get_docstring(node) or "").splitlines()
        body = without_docstring(node, lines)
        used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        imports = "".join(f"{text}\n" for name, text in modules.items() if name in used)
        code = f"{imports}\n\n{body}" if imports else body
        for instruction in cells(asked):
            yield row(instruction, "", code)
        noun = "class" if isinstance(node, ast.ClassDef) else "function"
        does = summary[0].lower() + summary[1:]
        explain = rng.choice(
            (
                "Explain what this {} does.",
                "What is this {} for?",
                "Describe this Python {} in a sentence.",
            )
        )
        yield row(explain.format(noun), code, f"The {noun} {does}")
        if noun == "class":
            continue
        head = body.partition("\n")[0]
        documented = code.replace(head, f'{head}\n    """{summary}"""')
        yield row("Add a docstring to the function.", code, documented)
        examples = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
        values = [e for e in examples if not e.source.startswith("print(")]
        for example in values[:1]:
            text = f"{code}\n\nprint({example.source.strip()})"
            yield row("What does this program print?", text, str(ast.literal_eval(example.want)))
        for right, wrong in MISTAKES:
            broken = code.replace(right, wrong, 1)
            if broken != code and "while" not in code and fails(broken, values):
                yield row(f"Find and correct the mistake. The function {does}", broken, code)
                break


def query_rows() -> Iterator[Row]:
    for title, lines in sections("sql.txt").items():
        table, columns = cells(title)
        names = ", ".join(column.split(" ")[0] for column in columns.split(", "))
        for asked, query in zip(lines[::2], lines[1::2], strict=True):
            for instruction in cells(asked.removeprefix("? ")):
                yield row(instruction, f"Table {table} with the columns {names}", query)


def expression_rows(rng: Random) -> Iterator[Row]:
    """An expression with its result for a list of numbers or words."""
    for line in sections("expressions.txt")["expressions"]:
        kind, expression, *asked = cells(line)
        for instruction in asked:
            for _ in range(2):
                if kind == "numbers":
                    data = repr(rng.sample(range(1, 40), rng.choice((4, 5, 6))))
                else:
                    data = repr(rng.sample(words("nouns"), rng.choice((3, 4))))
                value = eval(expression, {"data": ast.literal_eval(data)})
                output = f"data = {data}\nprint({expression})  # {value}"
                yield row(instruction, f"data = {data}", output)


def write(root: Path) -> None:
    rng = seeded("code")
    made = [*function_rows(rng), *query_rows(), *expression_rows(rng)]
    rng.shuffle(made)
    write_json(root / "codealpaca" / "code_alpaca_20k.json", made)
