"""The book's doors as a package: `from src.gpt_model_from_reference import GPTModel` in a checkout."""

import sys
from pathlib import Path

# The doors import `glassgpt`, which lies beside them. `python src/demo.py` puts this folder on the path by
# itself; `import src.demo` must find the same glassgpt, be it installed or not, so it is put there too.
_HERE = str(Path(__file__).resolve().parent)
if _HERE not in sys.path:
    sys.path.insert(0, _HERE)
