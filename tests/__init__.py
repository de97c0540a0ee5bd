"""The tests of whalewatch."""
