"""Options of a UperNet, and the table of its variants."""

import dataclasses
from typing import Any

from fastervit_jax.models import VARIANTS, FasterViTConfig, variant_config

_RESOLUTION = (512, 512)
_ADE20K_CLASSES = 150


@dataclasses.dataclass(frozen=True, kw_only=True)
class UperNetConfig:
    """Options of one network.

    The defaults are those of mmsegmentation's UperNet with a Swin backbone.

    Attributes:
        backbone: options of its FasterViT, an any_res one without a head.
        num_classes: number of classes.
        channels: width of the decoder.
        auxiliary_channels: width of the auxiliary head; 0 means no auxiliary head.
        map_norms: whether each map of the backbone passes through a layer norm of its own.
        head_dropout: probability of dropping a channel before a classifier, in training.
    """

    backbone: FasterViTConfig
    num_classes: int = _ADE20K_CLASSES
    channels: int = 512
    auxiliary_channels: int = 256
    map_norms: bool = True
    head_dropout: float = 0.1

    def __post_init__(self):
        for name, least in (("num_classes", 2), ("channels", 1), ("auxiliary_channels", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"Invalid {name}={value!r}: expected a whole number of {least} or more."
                )
        if not isinstance(self.map_norms, bool):
            raise ValueError(f"Invalid map_norms={self.map_norms!r}: expected True or False.")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(
                f"Invalid head_dropout={self.head_dropout}: expected a probability below 1."
            )

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images it is built for: of a crop, of a sliding window."""
        return self.backbone.resolution

    @property
    def class_modules(self) -> tuple[str, ...]:
        """Modules whose arrays depend on the classes, by our names and by those of a torch file."""
        ours = ("decoder.classifier", "auxiliary.classifier")
        return (*ours, "decode_head.conv_seg", "auxiliary_head.conv_seg")

    def options(self) -> dict[str, Any]:
        """All options by name, those of the backbone among them."""
        own = {field: getattr(self, field) for field in _OWN}
        backbone = self.backbone.options()
        return {**{option: backbone[option] for option in _OF_BACKBONE}, **own}


_OWN = tuple(field.name for field in dataclasses.fields(UperNetConfig) if field.name != "backbone")
_OF_BACKBONE = tuple(
    field.name
    for field in dataclasses.fields(FasterViTConfig)
    if field.name not in ("num_classes", "any_res", "layer_norm_last")
)

BACKBONES = {
    "upernet_" + name.removesuffix("_any_res"): name
    for name, options in VARIANTS.items()
    if options.get("any_res", False)
}
"""The backbone of each network, by its name: `upernet_faster_vit_2`: `faster_vit_2_any_res`."""


def upernet_config(name: str, **options: Any) -> UperNetConfig:
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
    own = {option: value for option, value in options.items() if option in _OWN}
    of_backbone = {option: value for option, value in options.items() if option not in _OWN}
    of_backbone = {"resolution": _RESOLUTION, **of_backbone, "num_classes": 0}
    return UperNetConfig(backbone=variant_config(BACKBONES[name], **of_backbone), **own)
