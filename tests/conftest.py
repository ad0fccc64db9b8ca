"""What all tests share."""

import os
import sys

if sys.platform == "darwin":  # its own place for temporary files leaves a socket's path, 103 bytes at most, no room
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/tmp")
