"""What a command does, from its configuration to its folder: unlearning, tuning, evaluating, planning, tables."""
