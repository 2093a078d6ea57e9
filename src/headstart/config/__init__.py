"""Every option once, and its way from YAML and flags to one frozen ``Config``."""
