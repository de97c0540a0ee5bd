"""What adapters share: events told twice, rucksacks, Unix sockets."""
