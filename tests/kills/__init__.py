"""What is left when a process is killed at any moment, and that the documented commands go on from it."""
