"""Detection on one's own images: a COCO JSON file per split, from the published detector.

    fastervit train --config=detect_folder --workdir=DIR \
        --config.finetune.weights=dino_4scale_faster_vit_4_21k_224 \
        --config.data.train=coco:IMAGES,train.json \
        --config.data.validation=coco:IMAGES,validation.json --config.model.num_classes=N

`config.finetune.weights` is a directory of convert_torch_weights.py. Another number of classes
makes new heads of classes. Set `config.data.max_boxes` to the most boxes of an image.
"""

from fastervit_jax.detection.recipe import coco_recipe


def get_config():
    config = coco_recipe("dino_4scale_faster_vit_4_21k_224", epochs=12, drop_epoch=10)
    config.data.train = "coco:train,train.json"
    config.data.validation = "coco:validation,validation.json"
    config.data.max_boxes = 300
    config.batch_size = 8
    config.evaluation.batch_size = 8
    config.remat = (1, 2, 3, 4)
    config.remat_transformer = True
    return config
