"""The command `scissorhands`."""
