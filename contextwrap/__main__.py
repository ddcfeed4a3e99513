"""The `contextwrap` command as a process: whatever goes wrong is one line on stderr and an exit code, no traceback."""

from __future__ import annotations

import sys

from contextwrap.errors import ContextwrapError


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 called wrongly, 130 interrupted."""
    try:
        from contextwrap.cli import cli  # noqa: PLC0415  needs packages that recording does without

        cli(prog_name="contextwrap")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("contextwrap"):
            raise
        sys.exit(f'Error: {error.name} is not installed; run: pip install "contextwrap[server]"')
    except ContextwrapError as error:
        sys.exit(f"Error: {error}")
    except OSError as error:
        sys.exit(f"Error: {error.strerror}: {error.filename}" if error.filename else f"Error: {error}")


if __name__ == "__main__":
    main()
