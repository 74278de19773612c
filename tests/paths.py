"""Where the project's files are, and the data shared between its authors, which a clone may lack."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
QUICKSTART = EXAMPLES / "quickstart"
MODEL = QUICKSTART / "model"
SHARED = ROOT.parent / "shared" / "data"
