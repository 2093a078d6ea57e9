"""Every option once, and its way from YAML and flags to one frozen ``Config``."""

from headstart.config.load import check, load_config, write_yaml
from headstart.config.rules import freeze_rule, freeze_text
from headstart.config.schema import Config

__all__ = ["Config", "check", "freeze_rule", "freeze_text", "load_config", "write_yaml"]
