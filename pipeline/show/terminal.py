"""Pictures in a terminal that draws them itself, by kitty's or iTerm2's protocol.

Only where the terminal's own name says that it does: to any other, a picture would be a megabyte of letters. Terminals that
know sixel alone say so to whoever asks and waits for an answer, which is not done here.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Literal

Protocol = Literal["kitty", "iterm2"]
_BY_TERM: Mapping[str, Protocol] = {"xterm-kitty": "kitty", "xterm-ghostty": "kitty"}
_BY_PROGRAM: Mapping[str, Protocol] = {"iTerm.app": "iterm2", "WezTerm": "iterm2"}
_INSIDE = ("screen", "tmux", "dumb")  # what stands between is no terminal of that kind, whatever it inherits
_CHUNK = 4096


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """The protocol of the terminal that these variables describe (TERM, TERM_PROGRAM, TMUX); None where they name none."""
    term = environment.get("TERM", "")
    if term.startswith(_INSIDE) or "TMUX" in environment:
        return None
    return _BY_TERM.get(term) or _BY_PROGRAM.get(environment.get("TERM_PROGRAM", ""))


def drawn(png: bytes, protocol: Protocol, columns: int) -> str:
    """What makes the terminal draw a PNG file: for kitty as wide as so many columns, for iTerm2 as large as fits."""
    text = base64.b64encode(png).decode("ascii")
    if protocol == "iterm2":
        return f"\x1b]1337;File=inline=1;size={len(png)}:{text}\x07\n"
    pieces = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    first = f"a=T,f=100,q=2,c={columns},"
    more = [f"m={int(number < len(pieces))}" for number in range(1, len(pieces) + 1)]
    return "".join(f"\x1b_G{first * (i == 0)}{more[i]};{piece}\x1b\\" for i, piece in enumerate(pieces)) + "\n"
