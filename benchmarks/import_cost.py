"""What does `import contextwrap` add to starting Python? Budget: 40 ms.

python benchmarks/import_cost.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 21


def seconds(code: str) -> float:
    """The wall time of one fresh interpreter that runs `code`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Print the medians of interleaved runs, so that a busy machine is busy for both."""
    pairs = [(seconds("pass"), seconds("import contextwrap")) for _ in range(ROUNDS)]
    bare, ours = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    print(f"bare Python {bare:.1f} ms, with contextwrap {ours:.1f} ms: adds {ours - bare:.1f} ms ({ROUNDS} rounds)")


if __name__ == "__main__":
    main()
