"""What adapters share: deduplication of events, rucksacks, Unix sockets."""
