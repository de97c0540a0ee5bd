"""What containers are alive: signals of an engine become a picture, and the picture events. It knows no engine."""
