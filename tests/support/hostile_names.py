"""Names that break what quotes them wrongly."""

from __future__ import annotations

#: Names of folders.
HOSTILE_FOLDERS = ["a b", "a'; echo foo", 'say "hi"', "$HOME", "`id`", "back\\slash", "ünïcode", "semi;colon&more"]
#: What a person may write into any value.
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
