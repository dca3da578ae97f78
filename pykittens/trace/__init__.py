"""From a Python function to a program: scopes, values with operators, loops and branches, signatures."""
