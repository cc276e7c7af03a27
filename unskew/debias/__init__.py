"""The mathematics of label bias, as functions and classes on arrays."""
