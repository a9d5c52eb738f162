"""Self-attention within chunks and a number of chunks to their left, with what distances add to the scores."""

from kernels.chunked_attention.api import chunked_attention as chunked_attention
from kernels.chunked_attention.reference import relative_shift as relative_shift
from kernels.chunked_attention.reference import skew as skew
from kernels.chunked_attention.reference import toeplitz as toeplitz
from kernels.chunked_attention.rows import chunk_rows as chunk_rows
