"""The recogniser's network, a file a part: front end, attention, convolution, feed-forward, block, encoder, head."""

from conformer.model.conformer_ctc import ConformerCTC as ConformerCTC
from conformer.model.encoder import Cache as Cache
from conformer.model.encoder import Encoder as Encoder
from conformer.model.subsampling import Subsampling as Subsampling
