"""The core on engines that do what a test says."""
