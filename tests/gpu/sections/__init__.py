"""What is proven, a module each: `prove(proof)` yields numbers and notes as they come, and raises if it cannot go on.

A number with a bar that is not met fails its section.
"""
