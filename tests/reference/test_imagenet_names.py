"""Names of ImageNet's classes are timm's."""

from timm.data import ImageNetInfo

from fastervit_jax.data.imagenet_names import IMAGENET_NAMES, NAME_OF_SYNSET


def test_names_and_order():
    theirs = ImageNetInfo("imagenet-1k")
    assert tuple(NAME_OF_SYNSET) == tuple(theirs.label_names())
    assert tuple(theirs.index_to_description(index) for index in range(1000)) == IMAGENET_NAMES
