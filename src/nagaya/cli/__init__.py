"""The command line: one file per group of commands. It prints; what is allowed is decided below."""
