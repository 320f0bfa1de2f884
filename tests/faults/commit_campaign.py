"""`python -m tests.faults.commit_campaign`: each deed after every system call of a commit, of two columns.

The command without Ray, some thousands of times; see tests/faults/strikes.py. Ends with a traceback where a part is neither
absent nor whole.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections import Counter
from pathlib import Path

from pipeline.label.command import label
from tests.conftest import label_config, save_checkpoints, scene_bytes
from tests.faults.strikes import DEEDS, GO_ON, IN_THREADS, Strike, sweep


def _main() -> int:
    strike, struck = Strike(), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        (folder / "photos/a.png").write_bytes(scene_bytes(1, side_px=64))
        config = label_config(folder / "run", (str(folder / "photos"),), save_checkpoints(folder / "checkpoints"), part_size=1)
        label(config)
        for column in ("images", "primary"):
            for when, deeds in ((strike.after_call, tuple(DEEDS)), (strike.before_file_event, IN_THREADS)):
                for deed in deeds:
                    turns = [(deed,)] if deed in GO_ON else [(deed, "EIO"), ("EIO", deed)]
                    for turn in turns:
                        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                            struck += (found := sweep(config, column, strike, when, turn))
                        print(f"{column}, {when.__name__}: {dict(found)}", flush=True)
    print(f"{struck.total()} strikes ({dict(struck)}): each left its part complete or absent, and it was completed")
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
