"""One training run, as a subprocess of the server or by hand:

    python -m training runs/0007

Exit code 0 when report.json was written (a rejected version is a result, too), 75 when asked to stop: start it again
on the same folder and it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from serve.errors import HustingsError
from training.process import INTERRUPTED

log = logging.getLogger(__name__)


class Stopped(BaseException):
    """SIGTERM or SIGINT came; not an Exception, so that nothing on the way mistakes it for a failure."""


def main() -> int:
    """Run the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description="carry out one training run")
    parser.add_argument("folder", type=Path, help="a run's folder, with snapshot.db and config.json")
    folder: Path = parser.parse_args().folder
    if not (folder / "config.json").is_file():
        parser.error(f"{folder} is not a run's folder: it has no config.json")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def stop(number: int, frame: object) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        from training.run import execute, write_report  # torch and peft: after the handlers, which must work at once

        write_report(folder, execute(folder))
    except Stopped:
        log.info("stopped; the same command goes on from the last checkpoint")
        return INTERRUPTED
    except HustingsError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
