"""The baseline implementations, and how cost is measured."""
