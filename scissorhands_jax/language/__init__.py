"""Language models: what a network has forgotten of what it read, judged from logs of its answers."""
