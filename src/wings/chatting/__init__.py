"""Conversations with a policy that calls real tools: their worlds, the turns, and how they look in a terminal."""
