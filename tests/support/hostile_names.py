"""Names that break code with wrong quoting."""

from __future__ import annotations

#: Names of folders.
HOSTILE_FOLDERS = ["a b", "a'; echo foo", 'say "hi"', "$HOME", "`id`", "back\\slash", "ünïcode", "semi;colon&more"]
#: Text that a user may write into any setting.
HOSTILE = [
    "a b",
    "a'; echo foo",
    'say "hi"',
    "$HOME",
    "$(id)",
    "`id`",
    "back\\slash",
    "ünïcode €",
    "semi;colon&more|",
    "-n",
    "#hash",
    "100%done",
    "{a,b}*?[x]!",
    "END_OF_SERVER_SH",
]
