"""Connected components of masks of any size, exactly as on the whole volume, block by block."""

from perfuse.components.merging import Block, Components, Gathering, Rule, find_components, label_block
from perfuse.components.runs import Connectivity

__all__ = ["Block", "Components", "Connectivity", "Gathering", "Rule", "find_components", "label_block"]
