"""All the contestants, in the order of the table."""

from .baselines import add_baselines
from .ours import add_ours
from .peers import add_peers
from .registry import Registry


def all_contestants() -> Registry:
    """Ours, the baselines and the peers."""
    registry = Registry()
    for add in (add_ours, add_baselines, add_peers):
        add(registry)
    return registry
