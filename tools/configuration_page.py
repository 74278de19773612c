"""Writes the reference of the configuration; `python tools/configuration_page.py > docs/configuration.md` renews it."""

import sys

from rest_megatron.config.page import markdown

sys.stdout.write(markdown())
