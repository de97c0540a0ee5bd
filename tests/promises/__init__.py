"""What users may rely on: races, outages, hangs, faults, leaving."""
