"""Makes `noisy_quadratic`, the method of these tests, importable; it also runs as a process of its own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
