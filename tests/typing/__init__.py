"""Types as users see them, checked against the installed package."""
