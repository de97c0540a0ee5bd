"""What tests share: engines, their drivers, and checkers."""
