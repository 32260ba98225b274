"""The posemux service: an HTTP door, an engine with one device thread, and the way through it."""

import sys
import tempfile

try:
    tempfile.gettempdir()
except FileNotFoundError as error:
    # torch asks for it while it is imported, and would answer with a page of its own files.
    sys.exit(f"posemux: {error.strerror}: is the disk full, or all of it read-only?")
