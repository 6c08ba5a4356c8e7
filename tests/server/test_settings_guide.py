"""The guide's table of settings is the tree's."""

from pathlib import Path

from graftwork_server.settings import keys

GUIDE = Path(__file__).parents[2] / "docs/guides/operations.md"


def table():
    rows = ["| key | flag | default | what it does |", "|---|---|---|---|"]
    for key in keys():
        default = key.field.default
        shown = (
            ""
            if default in (None, ())
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        rows.append(f"| `{key}` | `{key.flag}` | {shown} | {key.field.description} |")
    return "\n".join(rows)


def test_the_guide_lists_every_setting():
    assert table() in GUIDE.read_text(encoding="utf-8")
