"""What the Linux kernel tells of the processes of containers. Nothing here needs a privilege, or changes anything."""
