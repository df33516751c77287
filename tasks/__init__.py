"""What is learned on. Importing this package registers its names."""

import tasks.config
import tasks.function_config  # noqa: F401
