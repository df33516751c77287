"""What is learned on. Importing this package registers its names."""

import tasks.config  # noqa: F401
