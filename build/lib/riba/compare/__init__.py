"""Every method by name, judged against masks and by controls."""
