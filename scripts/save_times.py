"""Measures what a save costs for models of growing size, and writes the table into docs/resume.md.

python scripts/save_times.py [overrides]
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "resume.md"
MARK = "<!-- table -->\n"
HEAD = [
    "model",
    "parameters",
    "file size",
    "`background=false`: stands still",
    "`background=true`: stands still",
    "... written after",
    "resume",
]
RUN = ["data.batch_size=1", "data.seq_len=32", "logger=none", "trainer.limit_val_batches=1", "samples.length=0"]


def times(model: str, overrides: list[str], *, background: bool) -> dict[str, float]:
    """Bytes, seconds to copy and to write of the save at step 2, and seconds to restore it."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "train.py")]
        keys = [f"model={model}", f"save.background={background}", f"run_dir={run_dir}", "trainer.max_steps=2"]
        subprocess.run([*command, *RUN, *keys, *overrides, "save.every=1"], check=True, capture_output=True)
        subprocess.run([*command, f"resume={run_dir}", "trainer.max_steps=3"], check=True, capture_output=True)
        log = (run_dir / "train.log").read_text()
    saved = re.findall(r"step_00000001.ckpt: (\d+) bytes, copied in ([\d.]+) s, written after ([\d.]+) s", log)[0]
    parameters = re.findall(r"([\d.]+[kMB]) parameters", log)[0]
    restored = re.findall(r"restored in ([\d.]+) s", log)[0]
    return {
        "parameters": parameters,
        "bytes": int(saved[0]),
        "copied": saved[1],
        "written": saved[2],
        "restored": restored,
    }


def main() -> None:
    rows = []
    for model in ("nano", "small", "base"):
        plain, background = (times(model, sys.argv[1:], background=value) for value in (False, True))
        size = f"{plain['bytes'] / 1e9:.2f} GB"
        cells = [plain["written"], background["copied"], background["written"], plain["restored"]]
        rows.append([f"`{model}`", plain["parameters"], size, *(f"{cell} s" for cell in cells)])
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *rows)]
    before, _, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(before + MARK + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
