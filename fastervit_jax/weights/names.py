"""Map our array names and layouts to those of the official PyTorch model.

Our names are paths in the NNX state, joined by dots, such as `stages.2.blocks.0.conv1.kernel`.
"""

import re
from collections.abc import Mapping

import numpy as np

# These are applied in order to the path without its last part.
_MODULES = [
    (r"^stem\.conv1", "patch_embed.conv_down.0"),
    (r"^stem\.norm1", "patch_embed.conv_down.1"),
    (r"^stem\.conv2", "patch_embed.conv_down.3"),
    (r"^stem\.norm2", "patch_embed.conv_down.4"),
    (r"^downsamples\.(\d+)\.norm", r"levels.\1.downsample.norm"),
    (r"^downsamples\.(\d+)\.conv", r"levels.\1.downsample.reduction.0"),
    (r"^stages\.", "levels."),
    (r"carrier_tokenizer\.convolution", "global_tokenizer.to_global_feature.pos"),
    (r"window_position", "pos_embed"),
    (r"carrier_position", "hat_pos_embed"),
    (r"carrier_layer\.attention_scale", "gamma1"),
    (r"carrier_layer\.mlp_scale", "gamma2"),
    (r"window_layer\.attention_scale", "gamma3"),
    (r"window_layer\.mlp_scale", "gamma4"),
    (r"(blocks\.\d+)\.scale", r"\1.gamma"),
    (r"window_layer\.", ""),
    (r"carrier_layer\.", "hat_"),
    (r"attention_norm", "norm1"),
    (r"mlp_norm", "norm2"),
    (r"attention\.projection", "attn.proj"),
    (r"attention\.position_bias", "attn.pos_emb_funct"),
    (r"attention\.qkv", "attn.qkv"),
    (r"mlp\.expand", "mlp.fc1"),
    (r"mlp\.contract", "mlp.fc2"),
    (r"network\.hidden", "cpb_mlp.0"),
    (r"network\.out", "cpb_mlp.2"),
]

_LEAVES = {
    "kernel": ".weight",
    "scale": ".weight",
    "bias": ".bias",
    "mean": ".running_mean",
    "var": ".running_var",
    "gamma": "",
    "embedding": ".weight",
    "level_embedding": ".level_embed",
}

TOKENIZER = "global_tokenizer.to_global_feature.pos."
TOKENIZER_COPY = "global_tokenizer.pos_embed."
"""The official state dict contains the carrier token convolution under both names."""

DECODER_HEAD = "transformer.decoder."
_DECODER_HEADS = re.compile(r"^(?:transformer\.decoder\.)?(class_embed|bbox_embed)\.\d+\.")
"""DINO's state dict contains the heads of the decoder once per layer, and all of that twice."""


_SEGMENTATION_HEADS = ("decode_head.", "auxiliary_head.")


def main_name(name: str) -> str:
    """Returns the name under which we read an official tensor that has several names."""
    name = name.replace(TOKENIZER_COPY, TOKENIZER)
    if name.startswith(_SEGMENTATION_HEADS):
        # transformers' names of mmsegmentation's heads.
        name = name.replace(".batch_norm.", ".bn.").replace("head.classifier.", "head.conv_seg.")
    return _DECODER_HEADS.sub(DECODER_HEAD + r"\1.0.", name)


def copies(name: str, layers: int) -> list[str]:
    """Returns the further names of an official tensor.

    Args:
        name: its main name (`main_name`).
        layers: decoder layers of a DINO; 0 for other networks.
    """
    if TOKENIZER in name:
        return [name.replace(TOKENIZER, TOKENIZER_COPY)]
    head = _DECODER_HEADS.match(name)
    if not head or not layers:
        return []
    rest = name[head.end() :]
    both = (f"{place}{head[1]}.{i}.{rest}" for place in (DECODER_HEAD, "") for i in range(layers))
    return [each for each in both if each != name]


BACKBONE = "backbone."
"""Beginning of the names of a FasterViT's arrays in a larger network."""


def in_backbone(name: str) -> str:
    """Returns the rest of a name, ours or torch's, after the prefix of a backbone, if it has one.

    The official DINO writes `backbone.0.`.
    """
    return re.sub(r"^backbone\.(0\.)?", "", name)


def torch_name(
    name: str, modules: Mapping[str, str] | None = None, backbone: str = BACKBONE
) -> str:
    """Returns the official name of one of our arrays.

    Args:
        name: our name.
        modules: `Family.torch_modules` of the network's family. A FasterViT needs none.
        backbone: `Family.torch_backbone` of it.
    """
    if name.startswith(BACKBONE):
        return backbone + torch_name(name.removeprefix(BACKBONE))
    module, leaf = name.rsplit(".", 1)
    for pattern, replacement in modules.items() if modules else _MODULES:
        module = re.sub(pattern, replacement, module)
    # torch's MultiheadAttention writes its joint projection with an underscore.
    return (module + _LEAVES[leaf]).replace(".in_proj.", ".in_proj_")


def to_torch_layout(array: np.ndarray, name: str = "") -> np.ndarray:
    """Converts our layout to torch's: convolutions HWIO to OIHW, linear layers IO to OI.

    Embeddings, which our name of an array tells, have the same layout in both.
    """
    if name.endswith("embedding"):
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T


def from_torch_layout(array: np.ndarray, name: str = "") -> np.ndarray:
    """Converts torch's layout to ours, the inverse of `to_torch_layout`."""
    if name.endswith("embedding"):
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T
