"""One training run, as a subprocess of the server or by hand:

    python -m training runs/0007

Exit code 0 when report.json was written (a rejected version is a result, too), 1 when the run cannot be carried out
(the last line says why), 2 when the folder is none of a run, 75 when asked to stop: start it again on the same folder
and it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from serve.errors import HustingsError
from training.process import INTERRUPTED, held


def main() -> int:
    """Run the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description="carry out one training run")
    parser.add_argument("folder", type=Path, help="a run's folder, with snapshot.db and config.json")
    folder: Path = parser.parse_args().folder
    if not (folder / "config.json").is_file():
        parser.error(f"{folder} is not a run's folder: it has no config.json")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        with held(folder):
            from training.run import execute, write_report  # torch and peft take seconds: the handlers come first

            write_report(folder, execute(folder))
    except HustingsError as error:
        print(error, file=sys.stderr)  # without a time: the last line is what the operator page shows
        return 1
    return 0


def _stop(number: int, frame: object) -> None:
    """Everything that lasts is written whole or not at all, so the process may end between any two instructions."""
    os.write(1, b"stopped; the same command goes on from the last checkpoint\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
