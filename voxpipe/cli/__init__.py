"""The commands: parse, build, connect, print."""
