"""What adapters share: deduplication of events, labels, rucksacks, Unix sockets."""
