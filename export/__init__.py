"""From raw data to a proven model package: read, train, export, package. Needs the `train` extra."""
