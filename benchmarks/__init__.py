"""The straightforward implementations of each piece of work, and how cost is measured."""
