"""The names that each format gives to the tensors of the one network."""

from typing import NamedTuple


class Names(NamedTuple):
    """The names of the encoder's modules; those inside a block follow the block's name."""

    convolutions: str  # of the front end, before an index
    projection: str
    blocks: str
    head: str
    feed_forwards: tuple[tuple[str, str, str], tuple[str, str, str]]  # norm, expand, contract
    attention_norm: str
    query: str
    key: str
    value: str
    output: str
    position: str
    u: str
    v: str
    convolution_norm: str
    gate: str
    depthwise: str
    middle_norm: str
    pointwise: str
    norm: str
    final_norm: str = ""


WENET = Names(
    convolutions="encoder.embed.conv",
    projection="encoder.embed.out.0",
    blocks="encoder.encoders",
    head="ctc.ctc_lo",
    feed_forwards=(
        ("norm_ff_macaron", "feed_forward_macaron.w_1", "feed_forward_macaron.w_2"),
        ("norm_ff", "feed_forward.w_1", "feed_forward.w_2"),
    ),
    attention_norm="norm_mha",
    query="self_attn.linear_q",
    key="self_attn.linear_k",
    value="self_attn.linear_v",
    output="self_attn.linear_out",
    position="self_attn.linear_pos",
    u="self_attn.pos_bias_u",
    v="self_attn.pos_bias_v",
    convolution_norm="norm_conv",
    gate="conv_module.pointwise_conv1",
    depthwise="conv_module.depthwise_conv",
    middle_norm="conv_module.norm",
    pointwise="conv_module.pointwise_conv2",
    norm="norm_final",
    final_norm="encoder.after_norm",
)

NEMO = Names(
    convolutions="encoder.pre_encode.conv",
    projection="encoder.pre_encode.out",
    blocks="encoder.layers",
    head="decoder.decoder_layers.0",
    feed_forwards=(
        ("norm_feed_forward1", "feed_forward1.linear1", "feed_forward1.linear2"),
        ("norm_feed_forward2", "feed_forward2.linear1", "feed_forward2.linear2"),
    ),
    attention_norm="norm_self_att",
    query="self_attn.linear_q",
    key="self_attn.linear_k",
    value="self_attn.linear_v",
    output="self_attn.linear_out",
    position="self_attn.linear_pos",
    u="self_attn.pos_bias_u",
    v="self_attn.pos_bias_v",
    convolution_norm="norm_conv",
    gate="conv.pointwise_conv1",
    depthwise="conv.depthwise_conv",
    middle_norm="conv.batch_norm",  # LayerNorm has that name too
    pointwise="conv.pointwise_conv2",
    norm="norm_out",
)

TRANSFORMERS = NEMO._replace(
    convolutions="encoder.subsampling.layers",
    projection="encoder.subsampling.linear",
    head="ctc_head",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    position="self_attn.relative_k_proj",
    u="self_attn.bias_u",
    v="self_attn.bias_v",
    middle_norm="conv.norm",
)
