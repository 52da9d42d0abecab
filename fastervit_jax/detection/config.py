"""Options of a DINO, and the table of its variants."""

import dataclasses
from typing import Any

from fastervit_jax.models import VARIANTS, FasterViTConfig

COCO_IDS = 91
"""The official classes: COCO's category ids as they are, 0 to 90, with gaps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """Options of one network. The defaults are those of the official one.

    Attributes:
        backbone: options of its FasterViT, without a head.
        num_classes: number of classes.
        levels: 4 levels use stages 2 to 4 of the backbone, 5 levels use stages 1 to 4. The last
            level comes from a convolution of the last map.
        hidden: width of the tokens.
        feedforward: hidden width of the feed-forward layers.
        heads: attention heads.
        points: points that a head looks at on each level.
        encoder_layers: number of layers of the encoder.
        decoder_layers: number of layers of the decoder.
        queries: boxes that the network returns for each image.
    """

    backbone: FasterViTConfig
    num_classes: int = COCO_IDS
    levels: int = 4
    hidden: int = 256
    feedforward: int = 2048
    heads: int = 8
    points: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 6
    queries: int = 900

    def __post_init__(self):
        for name in _OWN:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Invalid {name}={value!r}: expected a whole number of 1 or more.")
        if self.levels not in (4, 5):
            raise ValueError(f"Invalid levels={self.levels}: expected 4 or 5.")
        if self.hidden % 32 or self.hidden % self.heads:
            raise ValueError(
                f"Invalid hidden={self.hidden}: expected a multiple of 32 (the groups of the "
                f"norms) and of heads={self.heads}."
            )

    @property
    def stages(self) -> tuple[int, ...]:
        """Stages of the backbone, from 0, whose maps are used."""
        return tuple(range(5 - self.levels, 4))

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width that carrier tokens are planned for. Images of any size can be used."""
        return self.backbone.resolution

    @property
    def class_modules(self) -> tuple[str, ...]:
        """Modules whose arrays depend on the classes, by our names and by those of a torch file."""
        ours = ("selection.class_head", "decoder.class_head", "label_embedding")
        theirs = (
            "transformer.enc_out_class_embed",
            "transformer.decoder.class_embed",
            "class_embed",
            "label_enc",
        )
        return (*ours, *theirs)

    def options(self) -> dict[str, Any]:
        """All options by name, those of the backbone among them."""
        backbone = self.backbone.options()
        own = {name: getattr(self, name) for name in _OWN}
        return {**{option: backbone[option] for option in _OF_BACKBONE}, **own}


_OWN = tuple(field.name for field in dataclasses.fields(DinoConfig) if field.name != "backbone")
# What every backbone of DINO has.
_FIXED = dict(any_res=True, pad_all_stages=True, position_by_tokens=True, num_classes=0)
_OF_BACKBONE = tuple(
    field.name
    for field in dataclasses.fields(FasterViTConfig)
    if field.name not in _FIXED and field.name != "layer_norm_last"
)

_BACKBONES = {
    4: ("0_224", "1_224", "2_224", "3_224", "4_224", "4_21k_224", "4_21k_384", "4_21k_512"),
    5: ("4_224", "4_21k_224", "4_21k_384", "4_21k_512"),
}
NAMES = {
    f"dino_{levels}scale_faster_vit_{number}": (levels, f"faster_vit_{number}")
    for levels, numbers in _BACKBONES.items()
    for number in numbers
}
"""Levels and backbone of each network, by its name: the official configurations."""


def dino_config(name: str, **options: Any) -> DinoConfig:
    """Options of a named network, changed by `options`: its own and those of `FasterViTConfig`.

    Raises:
        ValueError: an option is unknown or impossible; the message says what would do.
    """
    known = {*_OWN, *_OF_BACKBONE}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"Invalid model option {unknown[0]!r} of {name}. All: {', '.join(sorted(known))}."
        )
    levels, variant = NAMES[name]
    own = {option: value for option, value in options.items() if option in _OWN}
    of_backbone = {option: value for option, value in options.items() if option not in _OWN}
    backbone = {**VARIANTS[variant], "drop_path_rate": 0.1, **of_backbone, **_FIXED}
    return DinoConfig(backbone=FasterViTConfig(**backbone), **{"levels": levels, **own})
