"""The command `scissorhands demo language`: a small transformer learns facts by heart and forgets some people."""
