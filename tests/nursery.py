"""Starts services by `fork`: importing PyTorch, which takes seconds, is done once.

Reads `serve PORT`, which it answers with the process, and `wait PROCESS`, which it answers with the
exit code once it has ended. What still runs when nobody is left to ask is told to stop.
"""

import os
import signal
import sys

from app import cli


def main() -> None:
    running = set()
    print("ready", flush=True)
    for line in sys.stdin:
        verb, number = line.split()
        if verb == "serve":
            process = os.fork()
            if process == 0:
                os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
                os._exit(cli.main(["serve", "--port", number]))
            running.add(process)
            print(process, flush=True)
        else:
            process = int(number)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            running.remove(process)
            print(code, flush=True)
    for process in running:
        os.kill(process, signal.SIGTERM)


if __name__ == "__main__":
    main()
