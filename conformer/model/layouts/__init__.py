"""Layouts of tensors: the operations that the network is written in, and how each layout computes them.

`constant` and `coreml` are the exporters', `counting` is the cost model's; they are imported where they are used.
"""

from conformer.model.layouts.channels_first import ChannelsFirst
from conformer.model.layouts.sequence import Sequence

SEQUENCE, CHANNELS_FIRST = Sequence(), ChannelsFirst()
EXECUTIONS = {layout.name: layout for layout in (SEQUENCE, CHANNELS_FIRST)}  # what `model.execution` names
