"""Verbs of the console command that have no script of their own."""
