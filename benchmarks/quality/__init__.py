"""Judges the tool: does it find the bugs seeded in a corpus, and is it silent on healthy runs?"""
