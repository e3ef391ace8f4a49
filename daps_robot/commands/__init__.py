"""What the scripts do, as functions of a configuration, for use from a notebook or another program."""
