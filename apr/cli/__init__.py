"""The command line: one small module a verb. Read the arguments, call one function, show it."""
