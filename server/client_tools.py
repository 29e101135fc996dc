"""Tools whose calls the client runs. Anthropic's models know their schemas; other models must be shown them."""

from __future__ import annotations

from typing import Any

_PATH = {"type": "string", "description": "Absolute path of a file or a folder"}
_TEXT = {"type": "string"}

# What a tool does, and its input, by the type's name without its date.
CLIENT_TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "bash": (
        "Runs a command in a bash session that is kept between calls.",
        {
            "type": "object",
            "properties": {"command": _TEXT, "restart": {"type": "boolean", "description": "Begins anew"}},
        },
    ),
    "text_editor": (
        "Views, creates and edits text files: `view` shows a file (lines view_range) or a folder, `create` writes "
        "file_text, `str_replace` puts new_str in the place of the only old_str, `insert` puts insert_text "
        "after line insert_line.",
        {
            "type": "object",
            "properties": {
                "command": {"enum": ["view", "create", "str_replace", "insert"]},
                "path": _PATH,
                "file_text": _TEXT,
                "old_str": _TEXT,
                "new_str": _TEXT,
                "insert_line": {"type": "integer"},
                "insert_text": _TEXT,
                "view_range": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
            },
            "required": ["command", "path"],
        },
    ),
}
