"""What is measured, a module each. `measure(bench)` yields results as they come."""
